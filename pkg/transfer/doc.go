// Package transfer carries the checkpoint of a sandbox from one node-agent to another,
// and what the two tell each other around it, over one stream (see package link): the
// wire of a move.
//
// # The order
//
//	Source                          Target
//	Offer(parcel)             ──▶   AwaitParcel
//	                          ◀──   Accept, or Fail
//	(pauses, checkpoints)
//	Files(dir)                ══▶   Files(dir)
//	AwaitRestored             ◀──   Restored, or Fail
//	(commits)
//	Proceed(record), or Stop  ──▶   AwaitProceed
//	AwaitArrived              ◀──   Arrived(record), or Fail
//
// The parcel is accepted before anything is paused, so that a refusal costs the sandbox
// nothing and the target prepares while the source still works. Either side may give up
// at any step (Stop, Fail); what the other one waits for then ends with a GaveUp, which
// holds the fault as it was. Any other error means that the other side's decision is not
// known: a target that waits for Proceed has to ask the record.
//
// A side that does nothing for Options.Stall where it should move bytes is given up, as
// is one that breaks the format. How long a step may take that is work of the other node
// (to checkpoint, to restore, to commit) is for the caller's ctx to say: a node that
// vanished is noticed by the link.
//
// # The format
//
// A stream is frames in both directions: a byte that says what it is, the length of the
// body in four bytes, the body. Numbers are big-endian.
//
//	M  sirocco.node.v1.MoveMessage, 1 MiB and 4 KiB at most
//	C  part of a file: encoding (1 byte), index (4 bytes), map (32 bytes), content
//	S  end of a file: checksum (32 bytes)
//	E  end of the files, empty
//	P  target: it gets on, empty
//
// Each file is a message with name and size, its parts, and its end. It is cut in parts
// of 1 MiB; part i begins at byte i<<20. Parts come in ascending order; one that is not
// sent holds zeros. The map has a bit for each page of 4 KiB of the part, the lowest bit
// of the first byte for the first: the pages whose bit is set follow one another in the
// content, the others hold zeros. The last page of a file is as long as the file goes.
// Content is as it is (encoding 0) or compressed (1, one zstd frame). Zeros are holes at
// the target, so a file takes as much room as it has content.
//
// # Checksum
//
// The checksum of a file is BLAKE3, of size, length of the name (8 bytes each) and name,
// and then of index, map and uncompressed content of each part: so what is where is part
// of it, and zeros cost nothing. TLS keeps strangers out, and this finds what breaks
// before or behind it: memory, disks, ourselves. BLAKE3 because it takes 0.27 ms for a
// MiB where SHA-256 takes 0.55 ms with the processor's help (SHA-NI, which many servers
// lack), and both ends compute it while the sandbox stands still.
//
// # Speed
//
// Between two nodes on one machine nothing is compressed (Options.Plain). Otherwise the
// source reads, hashes and compresses one part while it writes another; the target
// reads one while it checks and writes another. Each holds at most five parts of 1 MiB,
// and a few MiB more once something was compressed. Whether to compress is
// decided for each part anew, from what link and compressor have done so far (see pace).
//
// Nothing is synced to a disk: a checkpoint that is lost with its machine is worthless.
package transfer

// Package transfer carries the checkpoint of a sandbox from one node-agent to another,
// and what the two tell each other around it, over one stream (see package link): the
// wire of a move.
//
// # The order
//
//	Source                          Target
//	Offer(parcel)             ──▶   AwaitParcel
//	                          ◀──   Accept, or Fail
//	(checkpoints, goes on)
//	Ahead(file)               ══▶   Files(dir)
//	(pauses)
//	FilesWhile(dir, save)     ══▶
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
//	K  pages of a part that are known: index (4 bytes), runs (6 bytes each)
//	S  end of a file: size (8 bytes), checksum (32 bytes)
//	E  end of the files, empty
//	P  it gets on, empty: between other frames
//
// Each file is a message with its name, its parts, and its end: how long it is need not be
// known before. It is cut in parts of 1 MiB; part i begins at byte i<<20. Parts come in
// ascending order; one that is not sent holds zeros. The map has a bit for each page of
// 4 KiB of the part, the lowest bit of the first byte for the first: the pages whose bit is
// set follow one another in the content, the others hold zeros. The last page of a file is
// as long as the file goes. Content is as it is (encoding 0) or compressed (1, one zstd
// frame). Zeros are holes at the target, so a file takes as much room as it has content.
//
// A file may be sent ahead of the others, by itself, up to E. Of pages that are in it too,
// only that is sent, before the rest of their part: runs of pages, each by the first in the
// part and their number less one (1 byte each) and the first in the file that was sent
// ahead (4 bytes). It is gone when the others are there.
//
// # Checksum
//
// The checksum of a file is BLAKE3, of the length of its name (8 bytes) and the name, then
// of index, map and uncompressed content of each part, of K and the body of each frame of
// known pages, and of its size: so what is where is part of it, and zeros cost nothing, nor
// what was checked when it was sent ahead. TLS keeps strangers out, and this finds what
// breaks before or behind it: memory, disks, ourselves. BLAKE3 because it takes 0.27 ms for
// a MiB where SHA-256 takes 0.55 ms with the processor's help (SHA-NI, which many servers
// lack), and both ends compute it while the sandbox stands still.
//
// # Speed
//
// What a sandbox has in memory is sent while it is being saved (FilesWhile), so that
// sending takes little longer than saving where the link is fast enough. Where it is not,
// or there is much to send, most of it can be sent before the sandbox stands still (Ahead).
// Between two nodes on one machine nothing is compressed (Options.Plain). Otherwise the
// source reads, hashes and compresses one part while it writes another; the target reads
// one while it checks and writes another. Each holds at most five parts of 1 MiB, and a few
// MiB more once something was compressed. Whether to compress is decided for each part
// anew, from what link and compressor have done so far (see pace).
//
// Nothing is synced to a disk: a checkpoint that is lost with its machine is worthless.
package transfer

// Package guest is how a node-agent speaks with the supervisor, process 1 of
// every sandbox: the wire protocol, the agent's client, the frame of a server,
// and a simulated server. Package supervisor is the real one.
//
// # Connection
//
// The supervisor listens on 127.0.0.1:Port inside the sandbox. A connection
// begins with a handshake in which both sides prove that they know the secret
// which the agent put into the supervisor's environment:
//
//	client → guest  "SRG" version(1)  nonce(32)
//	guest → client  "SRG" version(1)  nonce(32)  HMAC-SHA256(secret, "guest"  + client nonce + guest nonce)
//	client → guest  HMAC-SHA256(secret, "client" + client nonce + guest nonce)
//
// A process of a tenant that took the port first can't make the second line, so
// the agent never sends it anything; one that connects can't make the third.
// Then the connection carries yamux, version 0, without keepalives. Only the
// client opens streams and neither side pings: a client ends the connection at
// once when the guest tries. A new connection replaces the ones before it:
// their streams end, what they started goes on.
//
// # Streams
//
// Each stream is one request. Both directions carry frames:
//
//	kind(1)  length(4, big endian)  payload(length)
//
// The first frame is a request; its payload is the operation (1 byte) and the
// operation's fields. The guest answers with any number of item and data frames
// and then exactly one of ok (with result fields) and error (code, text), and
// closes its side. A client that closes its side early gives up: the guest then
// stops whatever it does only for this stream. For a write, the client sends
// data frames and one end frame; a stream that ends without the end frame
// leaves no file.
//
//	kind  name     payload
//	1     request  operation, fields
//	2     ok       fields; the last frame
//	3     error    code, text; the last frame
//	4     data     bytes of a file
//	5     item     fields of one element of a list or one event
//	6     end      nothing; the sender has sent all of it
//	7     stdout   offset (uvarint), bytes
//	8     stderr   offset (uvarint), bytes
//
// # Fields
//
// Fields stand one after another without tags: unsigned numbers as uvarint,
// signed ones as zigzag varint, booleans as one byte, strings and bytes as a
// uvarint length and the bytes, lists as a uvarint count and the elements,
// times as nanoseconds since 1970 (zero: not set), durations as nanoseconds.
// A payload that ends early has the zero value in all fields that are missing,
// and bytes after the last known field are ignored: fields may be added at the
// end of any message without a new version, so that an agent can serve
// sandboxes which an older or newer one started.
//
// # Limits
//
// A request is at most MaxRequest long, any other frame at most MaxFrame. The
// client holds a guest to that, to MaxList bytes for a whole list, and to a
// deadline for each unary call; strings from a guest are made valid UTF-8. A
// guest trusts a client that has passed the handshake; before that it reads 68
// bytes and no more, for at most HandshakeTimeout.
package guest

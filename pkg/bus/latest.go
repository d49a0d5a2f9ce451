package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// latestTimeout bounds the question to a leader, which nobody answers while one is
// being elected.
const latestTimeout = 5 * time.Second

// Latest reads what a bucket holds under a key from the leader of its stream.
//
// A bucket's own Get is answered by any server of a cluster, by one too that has
// not heard of the key yet. That costs no more than a conflict where a write
// follows; but who takes "not there" for the end of something must ask Latest
// first. Errors: jetstream.ErrKeyNotFound, also for a key that was deleted.
func Latest(ctx context.Context, js jetstream.JetStream, bucket, key string) (value []byte, revision uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, latestTimeout)
	defer cancel()
	ask, err := json.Marshal(map[string]string{"last_by_subj": "$KV." + bucket + "." + key})
	if err != nil {
		return nil, 0, fmt.Errorf("encode the question for %s: %w", key, err)
	}
	msg, err := js.Conn().RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET.KV_"+bucket, ask)
	if err != nil {
		return nil, 0, err
	}
	var answer struct {
		Error   *jetstream.APIError
		Message struct {
			Seq        uint64
			Hdrs, Data []byte
		}
	}
	if err := json.Unmarshal(msg.Data, &answer); err != nil {
		return nil, 0, fmt.Errorf("decode the answer about %s: %w", key, err)
	}
	if answer.Error != nil {
		if answer.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound {
			return nil, 0, jetstream.ErrKeyNotFound
		}
		return nil, 0, answer.Error
	}
	if len(answer.Message.Hdrs) > 0 {
		headers, err := nats.DecodeHeadersMsg(answer.Message.Hdrs)
		if err != nil {
			return nil, 0, fmt.Errorf("decode the headers of %s: %w", key, err)
		}
		// A deletion by a client, or by the server because of its age.
		if headers.Get("KV-Operation") != "" || headers.Get("Nats-Marker-Reason") != "" {
			return nil, 0, jetstream.ErrKeyNotFound
		}
	}
	return answer.Message.Data, answer.Message.Seq, nil
}

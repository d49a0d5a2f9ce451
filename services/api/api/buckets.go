package api

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"
)

// decode reads an entry of a bucket that holds messages of type T.
func decode[T any, M interface {
	*T
	proto.Message
}](key string, value []byte) (M, error) {
	m := M(new(T))
	if err := proto.Unmarshal(value, m); err != nil {
		return nil, fmt.Errorf("decode entry %s: %w", key, err)
	}
	return m, nil
}

// remove deletes an entry. Error: jetstream.ErrKeyNotFound, which deleting alone
// would not say.
func remove(ctx context.Context, bucket jetstream.KeyValue, key string) error {
	if _, err := bucket.Get(ctx, key); err != nil {
		return err
	}
	return bucket.Delete(ctx, key)
}

package image

import (
	"compress/flate"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/klauspost/compress/zstd"

	"github.com/sirocco-run/sirocco/pkg/image/erofs"
	"github.com/sirocco-run/sirocco/pkg/image/layer"
)

// own are the errors of this package, which are not wrapped twice.
var own = []error{ErrNotFound, ErrInvalid, ErrDenied, ErrUnavailable, ErrTooLarge, ErrNoSpace, ErrClosed}

func classified(err error) bool {
	for _, o := range own {
		if errors.Is(err, o) {
			return true
		}
	}
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// buildError gives the errors of merging and writing their meaning.
func buildError(err error) error {
	err = spaceError(err)
	var corrupt flate.CorruptInputError
	switch {
	case classified(err):
		return err
	case errors.Is(err, layer.ErrTooLarge), errors.Is(err, erofs.ErrFull):
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	case errors.Is(err, layer.ErrInvalid), errors.Is(err, erofs.ErrTree), errors.Is(err, errDigest),
		errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum), errors.As(err, &corrupt),
		errors.Is(err, io.ErrUnexpectedEOF), isZstd(err):
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	default:
		return err
	}
}

func isZstd(err error) bool {
	for _, z := range []error{zstd.ErrMagicMismatch, zstd.ErrCRCMismatch, zstd.ErrReservedBlockType,
		zstd.ErrCompressedSizeTooBig, zstd.ErrBlockTooSmall, zstd.ErrUnexpectedBlockSize,
		zstd.ErrWindowSizeExceeded, zstd.ErrWindowSizeTooSmall, zstd.ErrDecoderSizeExceeded, zstd.ErrUnknownDictionary,
		zstd.ErrFrameSizeMismatch, zstd.ErrFrameSizeExceeded} {
		if errors.Is(err, z) {
			return true
		}
	}
	return false
}

// registryError gives the errors of talking to a registry their meaning. What
// is neither an answer nor a fault of the network is a broken image.
func registryError(ref string, err error) error {
	err = spaceError(err)
	var answer *transport.Error
	var network net.Error
	switch {
	case classified(err):
		return err
	case errors.Is(err, errAddress):
		return fmt.Errorf("%w: %s: %w", ErrDenied, ref, err)
	case errors.As(err, &answer):
		kind := ErrInvalid
		switch code := answer.StatusCode; {
		case code == http.StatusNotFound:
			kind = ErrNotFound
		case code == http.StatusUnauthorized, code == http.StatusForbidden:
			kind = ErrDenied
		case code == http.StatusTooManyRequests, code == http.StatusRequestTimeout, code >= 500:
			kind = ErrUnavailable
		}
		return fmt.Errorf("%w: %s: %w", kind, ref, err)
	case errors.As(err, &network), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EPIPE),
		errors.Is(err, errStalled):
		return fmt.Errorf("%w: %s: %w", ErrUnavailable, ref, err)
	default:
		return fmt.Errorf("%w: %s: %w", ErrInvalid, ref, err)
	}
}

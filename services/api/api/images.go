package api

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/image"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Where an image came from, as Image.source says it.
const (
	sourceBuiltin = "builtin"
	sourceImport  = "import"
)

func (a *API) listImages(ctx context.Context, _ caller, _ *siroccov1.ListImagesRequest) (*siroccov1.ListImagesResponse, error) {
	resp := &siroccov1.ListImagesResponse{Images: []*siroccov1.Image{
		{Name: image.Base, Source: sourceBuiltin}, {Name: image.Host, Source: sourceBuiltin},
	}}
	objects, err := a.images.List(ctx)
	if err != nil && !errors.Is(err, jetstream.ErrNoObjectsFound) {
		return nil, away("list images", err)
	}
	var imported []*siroccov1.Image
	for _, o := range objects {
		imported = append(imported, imageOf(o))
	}
	slices.SortFunc(imported, func(x, y *siroccov1.Image) int { return strings.Compare(x.GetName(), y.GetName()) })
	resp.Images = append(resp.Images, imported...)
	return resp, nil
}

// imageOf describes a stored archive. Its digest is that of the archive.
func imageOf(o *jetstream.ObjectInfo) *siroccov1.Image {
	img := &siroccov1.Image{Name: o.Name, SizeBytes: int64(o.Size), Source: sourceImport} //nolint:gosec // far below 2^63
	if raw, err := base64.URLEncoding.DecodeString(strings.TrimPrefix(o.Digest, "SHA-256=")); err == nil {
		img.Digest = "sha256:" + hex.EncodeToString(raw)
	}
	if !o.ModTime.IsZero() {
		img.CreatedAt = timestamppb.New(o.ModTime)
	}
	return img
}

// importImage stores an archive under a name. What is no archive of an image,
// or ends early, leaves nothing behind, and the image that had the name before
// stays.
func (a *API) importImage(ctx context.Context, c caller, name string, body io.Reader) (*siroccov1.Image, error) {
	if err := c.mustOperate(); err != nil {
		return nil, err
	}
	if err := image.CheckName(name); err != nil {
		return nil, fault.Invalid("name", "want lower-case letters and digits with single '.', '_' or '-' between them and perhaps a tag, but not %q or %q", image.Base, image.Host)
	}
	archive := newArchive(body, a.cfg.MaxImageBytes)
	defer archive.Close()
	info, err := a.images.Put(ctx, jetstream.ObjectMeta{Name: name}, archive)
	if err != nil {
		var f *fault.Fault
		if errors.As(err, &f) {
			return nil, f
		}
		if cause := archive.Err(); cause != nil {
			return nil, cause
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, away("store image "+name, err)
	}
	a.log.InfoContext(ctx, "image imported", "image", name, "bytes", info.Size, "digest", info.Digest)
	info.ModTime = time.Now()
	return imageOf(info), nil
}

func (a *API) removeImage(ctx context.Context, c caller, req *siroccov1.RemoveImageRequest) (*siroccov1.RemoveImageResponse, error) {
	if err := c.mustOperate(); err != nil {
		return nil, err
	}
	if req.GetName() == image.Base || req.GetName() == image.Host {
		return nil, fault.New(fault.FailedPrecondition, "%q is built in and stays", req.GetName())
	}
	if image.CheckName(req.GetName()) != nil {
		return nil, fault.Invalid("name", "it is not the name of an imported image")
	}
	// Deleting what was deleted is no error of the store's.
	_, err := a.images.GetInfo(ctx, req.GetName())
	if err == nil {
		err = a.images.Delete(ctx, req.GetName())
	}
	switch {
	case errors.Is(err, jetstream.ErrObjectNotFound):
		return nil, fault.New(fault.ImageNotFound, "no imported image %s", req.GetName())
	case err != nil:
		return nil, away("remove image "+req.GetName(), err)
	}
	return &siroccov1.RemoveImageResponse{}, nil
}

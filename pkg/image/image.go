// Package image turns what people call an image into the root file system of a
// sandbox.
//
// There are four kinds: base, the small userland that comes with the platform;
// host, this machine's own programs shown read-only; registry references; and
// imported archives (OCI layout or docker save). All but host become one EROFS
// file, which any number of sandboxes share through the page cache. Every kind
// has the supervisor at /.sirocco/init, an empty /.sirocco/run, and the mount
// points and files that a sandbox needs.
//
// Concurrency: a Store may be used by any number of goroutines, and several
// Stores, of other processes too, may share a directory: what is written is
// complete before it gets its name, and what is in use is locked.
package image

import (
	"errors"

	"github.com/sirocco-run/sirocco/pkg/runtime"
)

// Names of the built-in images.
const (
	// Base is the userland that is built in and always there.
	Base = "base"
	// Host is this machine's /usr with the parts of /etc a program needs. It
	// shows nothing of /root, /home, /opt or /var: a python3 or node that lives
	// there is not in it.
	Host = "host"
)

// Where the supervisor and its folder are in every image.
const (
	SupervisorPath = "/.sirocco/init"
	SupervisorRun  = "/.sirocco/run"
)

// Errors that callers act on. All of them wrap a text that says what happened
// and may be shown to the tenant.
var (
	// ErrNotFound: there is no such image.
	ErrNotFound = errors.New("image not found")
	// ErrInvalid: the image, the archive or the name is broken; trying again
	// does not help.
	ErrInvalid = errors.New("image invalid")
	// ErrDenied: the registry refused the credentials, or its address may not
	// be reached.
	ErrDenied = errors.New("image access denied")
	// ErrUnavailable: the registry is away or overloaded; try again.
	ErrUnavailable = errors.New("registry unavailable")
	// ErrTooLarge: the image passes a limit of this node.
	ErrTooLarge = errors.New("image too large")
	// ErrNoSpace: the disk of this node is full.
	ErrNoSpace = errors.New("no disk space for image")
	// ErrInUse: the image is in use and stays.
	ErrInUse = errors.New("image in use")
	// ErrClosed: the store has been closed.
	ErrClosed = errors.New("image store closed")
)

// Image is a root file system that is ready to use.
type Image struct {
	// Ref is what was asked for.
	Ref string
	// Digest names the content: that of the platform's manifest for a registry
	// image and an OCI layout, that of the configuration for docker save, that
	// of the parts for base and host. "sha256:" and 64 hex digits.
	Digest string
	// Source is Ref with the digest pinned ("repo@sha256:…"); resolving it
	// gives the same image. For base and host it is the name.
	Source string
	Config Config
	Rootfs runtime.Rootfs
	// Size is the disk space the image takes on this node, in bytes.
	Size int64
	// Sum tells image files apart, which a sandbox that moves must find equal: the
	// same image may have been laid out in another way. Empty for host.
	Sum string
}

// Config is what an image says about how to run it.
type Config struct {
	// Env holds NAME=value entries.
	Env        []string `json:"env,omitempty"`
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	// WorkingDir is absolute, or empty.
	WorkingDir string `json:"working_dir,omitempty"`
	// User is a name or number, with ":" and a group perhaps; empty is root.
	User string `json:"user,omitempty"`
}

// Kind says where an image came from.
type Kind string

// The kinds of images.
const (
	KindBase     Kind = "base"
	KindHost     Kind = "host"
	KindRegistry Kind = "registry"
	KindImport   Kind = "import"
)

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
)

func TestBaseImage(t *testing.T) {
	t.Parallel()
	s := create(t, nil)
	if got := sh(t, s, "echo $(printf 'b\\na\\n' | sort | tr '\\n' ' ') $(seq 3 | wc -l) $(echo hello | sed s/l/L/g)"); got != "a b 3 heLLo" {
		t.Errorf("got %q", got)
	}
	if got := s.Record.GetObserved().GetImageDigest(); got == "" {
		t.Error("the record names no image")
	}
}

// The image "host" brings this machine's programs, without its secrets.
func TestHostImage(t *testing.T) {
	t.Parallel()
	s := create(t, &siroccov1.CreateSandboxRequest{Image: "host"})
	if _, err := exec.LookPath("/usr/bin/python3"); err == nil {
		if got := sh(t, s, "python3 -c 'print(6*7)'"); got != "42" {
			t.Errorf("python3 says %q", got)
		}
	}
	if got := sh(t, s, "ls /usr/bin | wc -l"); len(got) < 3 {
		t.Errorf("/usr/bin holds %s files", got)
	}
	for _, path := range []string{"/etc/shadow", "/etc/ssh", "/root/.ssh", "/home/user", "/var/lib/sirocco", up.Dir} {
		if r := run(t, s, "ls", "-A", path); r.GetExitCode() == 0 && strings.TrimSpace(r.out) != "" {
			t.Errorf("%s of this machine is there: %s", path, r.out)
		}
	}
	run(t, s, "sh", "-c", "echo x >/usr/bin/sirocco-test-file; rm -f /usr/bin/env")
	if _, err := os.Stat("/usr/bin/sirocco-test-file"); err == nil {
		t.Error("a file was written on this machine")
	}
	if _, err := os.Stat("/usr/bin/env"); err != nil {
		t.Error("/usr/bin/env of this machine is gone")
	}
}

func TestRegistryImage(t *testing.T) {
	t.Parallel()
	img, err := testImage()
	if err != nil {
		t.Fatal(err)
	}
	ref, err := registry.push("tests/app:1", img)
	if err != nil {
		t.Fatal(err)
	}
	s := create(t, &siroccov1.CreateSandboxRequest{Image: ref})
	digest, _ := img.Digest()
	if got := s.Record.GetObserved().GetImageDigest(); got != registry.host()+"/tests/app@"+digest.String() {
		t.Errorf("the record names %q", got)
	}
	if got := sh(t, s, "echo $FROM_IMAGE $PWD; cat first; test -e gone || echo; test -e gone || echo none"); got != "yes /srv\ntwo\nnone" {
		t.Errorf("got %q", got)
	}
	if got := sh(t, s, "id -un 2>/dev/null || echo $(cat /proc/self/status | while read k v rest; do test $k = Uid: && echo $v; done)"); got != "ann" && got != "1000" {
		t.Errorf("it runs as %q", got)
	}
	// The tag moves on; a digest stays.
	if _, err = registry.push("tests/app:1", empty.Image); err != nil {
		t.Fatal(err)
	}
	again := create(t, &siroccov1.CreateSandboxRequest{Image: s.Record.GetObserved().GetImageDigest()})
	if got := sh(t, again, "cat first"); got != "two" {
		t.Errorf("by digest: %q", got)
	}
}

// Many sandboxes of an image that is not here yet: it is pulled once, and all of
// them run.
func TestConcurrentPulls(t *testing.T) {
	t.Parallel()
	img, err := testImage()
	if err != nil {
		t.Fatal(err)
	}
	ref, err := registry.push("tests/burst:1", img)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			if got := sh(t, create(t, &siroccov1.CreateSandboxRequest{Image: ref}), "cat first"); got != "two" {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestImportedImages(t *testing.T) {
	t.Parallel()
	img, err := testImage()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// As an OCI layout in a tar, and as `docker save` writes it.
	path, err := layout.Write(filepath.Join(dir, "layout"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	oci := filepath.Join(dir, "oci.tar")
	if out, err := exec.Command("tar", "-C", filepath.Join(dir, "layout"), "-cf", oci, ".").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	tag, err := name.NewTag("tests/app:1")
	if err != nil {
		t.Fatal(err)
	}
	docker := filepath.Join(dir, "docker.tar")
	if err := tarball.WriteToFile(docker, tag, img); err != nil {
		t.Fatal(err)
	}
	for imported, archive := range map[string]string{"oci-app": oci, "docker-app": docker} {
		out, errs, code := up.CLI(t.Context(), nil, "image", "import", imported, archive)
		if code != 0 {
			t.Fatalf("import %s: %d %s %s", archive, code, out, errs)
		}
		s := create(t, &siroccov1.CreateSandboxRequest{Image: imported})
		if got := sh(t, s, "cat first"); got != "two" {
			t.Errorf("%s: %q", imported, got)
		}
		list, err := client(t).Images().List(t.Context(), connect.NewRequest(&siroccov1.ListImagesRequest{}))
		if err != nil || !strings.Contains(list.Msg.String(), imported) {
			t.Errorf("list: %v, %v", list, err)
		}
		if _, errs, code := up.CLI(t.Context(), nil, "image", "rm", imported); code != 0 {
			t.Errorf("rm: %d %s", code, errs)
		}
		checkEnd(t, accept(t, &siroccov1.CreateSandboxRequest{Image: imported, Wait: siroccov1.Wait_WAIT_ACCEPTED}), want{cause: siroccov1.Cause_CAUSE_IMAGE_ERROR, code: -1, failed: true})
		if got := sh(t, s, "cat first"); got != "two" {
			t.Errorf("%s, after its removal, in a sandbox that runs: %q", imported, got)
		}
	}
	// What is no archive is refused, or fails what is made from it.
	raw, err := os.ReadFile(oci)
	if err != nil {
		t.Fatal(err)
	}
	for what, archive := range map[string]io.Reader{"text": strings.NewReader("not an archive"), "half": bytes.NewReader(raw[:len(raw)/2]), "empty": strings.NewReader("")} {
		_, errs, code := up.CLI(t.Context(), archive, "image", "import", "broken-"+what, "-")
		if code == 0 {
			checkEnd(t, accept(t, &siroccov1.CreateSandboxRequest{Image: "broken-" + what, Wait: siroccov1.Wait_WAIT_ACCEPTED}), want{cause: siroccov1.Cause_CAUSE_IMAGE_ERROR, code: -1, failed: true})
		} else if code != 2 {
			t.Errorf("%s: exit code %d: %s", what, code, errs)
		}
	}
	_, err = clientOf(t, otherTenant(t)).Images().Remove(t.Context(), connect.NewRequest(&siroccov1.RemoveImageRequest{Name: "oci-app"}))
	if connect.CodeOf(err) != connect.CodePermissionDenied && sirocco.CodeOf(err) != sirocco.PermissionDenied {
		t.Errorf("a tenant removes images: %v", err)
	}
}

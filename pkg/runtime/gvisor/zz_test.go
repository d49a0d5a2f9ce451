package gvisor_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/gvisortest"
)

func TestZZ(t *testing.T) {
	cfg := gvisor.Config{RunscPath: gvisortest.Runsc(t), StateDir: stateDir(t), Debug: true}
	rt := openConfig(t, cfg)
	for i := 0; i < 4; i++ {
		sb := create(t, rt, spec(t, "sb-zz", "serve"))
		dial(t, sb).Close()
		fs, _ := filepath.Glob(cfg.StateDir + "/sb-zz/log/*")
		for _, f := range fs {
			b, _ := os.ReadFile(f)
			os.WriteFile("/tmp/zzlog/"+filepath.Base(f), b, 0o644)
		}
		_ = strings.Join
		sb.Destroy(t.Context())
	}
}

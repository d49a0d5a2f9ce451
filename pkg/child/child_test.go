package child_test

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/sirocco-run/sirocco/pkg/child"
)

// asParent has this test program start a child, say so, and wait.
const asParent = "CHILD_TEST_PARENT"

func TestMain(m *testing.M) {
	if os.Getenv(asParent) == "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("sh", "-c", `sleep 600 >/dev/null & trap "kill $!; echo asked; exit" TERM; echo ready; wait`)
	cmd.Stdout = os.Stdout
	c, err := child.Start(cmd, nil)
	if err != nil || c.Wait() != nil {
		os.Exit(1)
	}
}

func TestEndsWithItsParent(t *testing.T) {
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), asParent+"=1")
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "ready" {
		t.Fatalf("the child says %q", lines.Text())
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// The pipe is open as long as the child lives.
	if !lines.Scan() || lines.Text() != "asked" || lines.Scan() {
		t.Errorf("after its parent was killed it says %q", lines.Text())
	}
	_ = parent.Wait() // it was killed
}

func TestTellsHowItEnded(t *testing.T) {
	c, err := child.Start(exec.Command("sh", "-c", "exit 3"), nil)
	if err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	<-c.Done()
	for range 2 {
		if err := c.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 3 {
			t.Errorf("it ended with %v", err)
		}
	}
	said := ""
	cmd := exec.Command("echo", "hello")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c, err = child.Start(cmd, func() error {
		lines := bufio.NewScanner(out)
		lines.Scan()
		said = lines.Text()
		return cmd.Wait()
	})
	if err != nil || c.Wait() != nil || !strings.HasPrefix(said, "hello") {
		t.Errorf("it said %q, %v", said, err)
	}
	if _, err := child.Start(exec.Command("/nowhere"), nil); err == nil {
		t.Error("what is not there was started")
	}
}

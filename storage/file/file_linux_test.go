package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"encdump/storage"
)

func init() { children["full"] = childFull }

// childFull runs in a mount namespace of its own, and puts more than fits on a file system of 1 MiB.
func childFull() error {
	if err := syscall.Mount("tmpfs", "small", "tmpfs", 0, "size=1m"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	fmt.Println("mounted")
	ctx := context.Background()
	old, more := make([]byte, 600<<10), make([]byte, 3<<20)
	want := func(names ...string) error {
		es, err := os.ReadDir("small")
		if err != nil {
			return err
		}
		got := []string{}
		for _, e := range es {
			got = append(got, e.Name())
		}
		if !slices.Equal(got, names) {
			return fmt.Errorf("directory holds %q, want %q", got, names)
		}
		return nil
	}
	b := New("small")
	for _, o := range []*storage.PutOptions{nil, ifAbsent} {
		for name, r := range map[string]io.Reader{
			"WriteTo": bytes.NewReader(more),
			"Read":    io.LimitReader(bytes.NewReader(more), 1<<30),
			// The end comes before the buffer is written for the first time.
			"small steps": io.MultiReader(bytes.NewReader(more[:700<<10]), bytes.NewReader(more[:700<<10])),
		} {
			err := b.Put(ctx, "1234-0", r, o)
			if !errors.Is(err, syscall.ENOSPC) || err.Error() != "put 1234-0 to small: no space left on device" {
				return fmt.Errorf("%s: error %v", name, err)
			}
			if err := want(); err != nil {
				return err
			}
		}
	}
	// An overwrite that does not fit leaves the old object, and the space of what failed is free again.
	if err := b.Put(ctx, "1234-0", bytes.NewReader(old), nil); err != nil {
		return err
	}
	for range 3 {
		if err := b.Put(ctx, "1234-0", bytes.NewReader(old), nil); !errors.Is(err, syscall.ENOSPC) {
			return fmt.Errorf("overwrite: %v", err)
		}
		if got, err := os.ReadFile(filepath.Join("small", "1234-0")); err != nil || !bytes.Equal(got, old) {
			return fmt.Errorf("old object: %d bytes, %v", len(got), err)
		}
		if err := want("1234-0"); err != nil {
			return err
		}
	}
	return nil
}

// A real full disk: a child mounts a tiny file system that nobody else sees. It needs no root where users may have
// namespaces.
func TestDiskFull(t *testing.T) {
	var tried []string
	for _, user := range []bool{false, true} {
		dir := t.TempDir()
		must(t, os.Mkdir(filepath.Join(dir, "small"), 0o700))
		c := child(t, "full", dir)
		c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		if user {
			c.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
			c.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
			c.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
		}
		out, err := c.CombinedOutput()
		var exit *exec.ExitError
		if err == nil {
			return
		}
		if errors.As(err, &exit) && strings.HasPrefix(string(out), "mounted\n") {
			t.Fatalf("%v\n%s", err, out)
		}
		tried = append(tried, fmt.Sprintf("user namespace %v: %v %s", user, err, out))
	}
	t.Fatalf("cannot mount a file system to fill, neither as this user nor in a user namespace of its own; run this test as root or allow user namespaces:\n%s", strings.Join(tried, "\n"))
}

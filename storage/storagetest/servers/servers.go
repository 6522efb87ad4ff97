// Package servers starts, for tests, real servers of the storage services and a proxy that goes wrong where it is told
// to. Everything listens on a free port of the loopback, keeps its data in a temporary folder and ends with the test.
// .ci/deps installs the programs.
package servers

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// program returns the path of a program: from PATH, or from where .ci/deps puts it.
func program(t testing.TB, name string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		path := filepath.Join(dir, ".ci", "bin", name)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	t.Fatalf("%s is not installed; make deps does it", name)
	return ""
}

// freePort returns an address that nobody listens on.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// log is what a server says.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// start runs a server until the test ends, and returns when a GET of health at the address is answered. command makes
// the command for an address; it is called again where another process was faster to take the port.
func start(t testing.TB, client *http.Client, health string, command func(address string) *exec.Cmd) (address string) {
	t.Helper()
	for range 5 {
		address = freePort(t)
		cmd := command(address)
		said := &log{}
		cmd.Stdout, cmd.Stderr = said, said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		exited := make(chan struct{})
		go func() {
			cmd.Wait()
			close(exited)
		}()
		t.Cleanup(func() {
			cmd.Process.Kill()
			<-exited
			if t.Failed() && said.String() != "" {
				t.Logf("%s said:\n%s", filepath.Base(cmd.Path), said)
			}
		})
		if ready(client, fmt.Sprintf(health, address), exited) {
			return address
		}
		t.Logf("%s did not start:\n%s", filepath.Base(cmd.Path), said)
	}
	t.Fatal("the server does not start")
	return ""
}

// ready polls until url is answered or the process has ended.
func ready(client *http.Client, url string, exited <-chan struct{}) bool {
	deadline := time.After(30 * time.Second)
	for {
		if r, err := client.Get(url); err == nil {
			r.Body.Close()
			return true
		}
		select {
		case <-exited:
			return false
		case <-deadline:
			return false
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Proxy is a TCP proxy that goes wrong: toxiproxy, see https://github.com/Shopify/toxiproxy.
type Proxy struct {
	Address string // what clients connect to
	api     string
}

// StartProxy starts a proxy to the address of a server.
func StartProxy(t testing.TB, upstream string) *Proxy {
	t.Helper()
	path := program(t, "toxiproxy-server")
	api := start(t, http.DefaultClient, "http://%s/version", func(address string) *exec.Cmd {
		host, port, _ := net.SplitHostPort(address)
		cmd := exec.Command(path, "-host", host, "-port", port)
		cmd.Env = []string{"LOG_LEVEL=error"}
		return cmd
	})
	p := &Proxy{api: "http://" + api}
	var made struct{ Listen string }
	p.call(t, "POST", "/proxies", map[string]any{"name": "p", "listen": "127.0.0.1:0", "upstream": upstream, "enabled": true}, &made)
	p.Address = made.Listen
	return p
}

// Toxic adds a fault, as ("reset_peer", "downstream", {"timeout": 0}); upstream is what clients send. It acts on
// connections that exist, too.
func (p *Proxy) Toxic(t testing.TB, kind, stream string, attributes map[string]any) {
	t.Helper()
	p.call(t, "POST", "/proxies/p/toxics", map[string]any{"type": kind, "stream": stream, "attributes": attributes}, nil)
}

// Enable lets the proxy listen, or makes it refuse and cut connections.
func (p *Proxy) Enable(t testing.TB, on bool) {
	t.Helper()
	p.call(t, "POST", "/proxies/p", map[string]any{"enabled": on}, nil)
}

// Heal removes all faults.
func (p *Proxy) Heal(t testing.TB) {
	t.Helper()
	p.call(t, "POST", "/reset", nil, nil)
}

func (p *Proxy) call(t testing.TB, method, path string, in, out any) {
	t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(context.Background(), method, p.api+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	answer, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode >= 300 {
		t.Fatalf("toxiproxy: %s %s: %s: %s, %v", method, path, r.Status, answer, err)
	}
	if out != nil {
		if err := json.Unmarshal(answer, out); err != nil {
			t.Fatal(err)
		}
	}
}

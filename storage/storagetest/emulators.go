package storagetest

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// AzuriteAccount and AzuriteKey are the account that Azurite serves here.
const (
	AzuriteAccount = "dumptest"
	AzuriteKey     = "bm90IGEgc2VjcmV0" // "not a secret"
)

// Azurite starts Azurite, an emulator of Azure Blob Storage, with one account and without any container, and returns
// the connection string of the account. It is stopped when the test is done.
func Azurite(t testing.TB) (connection string) {
	t.Helper()
	address := freeAddress(t)
	host, port, _ := net.SplitHostPort(address)
	// Without --skipApiVersionCheck it refuses the version of the API that the SDK speaks.
	serve(t, "http://"+address+"/", "azurite-blob", []string{"AZURITE_ACCOUNTS=" + AzuriteAccount + ":" + AzuriteKey},
		"--silent", "--skipApiVersionCheck", "--disableTelemetry", "--inMemoryPersistence", "--blobHost", host, "--blobPort", port)
	return "AccountName=" + AzuriteAccount + ";AccountKey=" + AzuriteKey + ";BlobEndpoint=http://" + address + "/" + AzuriteAccount
}

// GCS starts fake-gcs-server, an emulator of Google Cloud Storage, without any bucket, and returns its endpoint, as
// http://127.0.0.1:4443. It is stopped when the test is done.
func GCS(t testing.TB) (endpoint string) {
	t.Helper()
	address := freeAddress(t)
	host, port, _ := net.SplitHostPort(address)
	serve(t, "http://"+address+"/_internal/healthcheck", "fake-gcs-server", nil,
		"-scheme", "http", "-host", host, "-port", port, "-backend", "memory", "-public-host", address, "-log-level", "warn")
	return "http://" + address
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// serve starts a program and waits until something answers under url.
func serve(t testing.TB, url, name string, env []string, args ...string) {
	t.Helper()
	cmd := exec.Command(emulator(t, name), args...)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), env...)
	log, err := os.Create(filepath.Join(cmd.Dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { cmd.Wait(); close(exited) }()
	t.Cleanup(func() { cmd.Process.Kill(); <-exited })
	deadline := time.After(30 * time.Second)
	for {
		resp, err := http.Get(url)
		if err == nil {
			resp.Body.Close()
			return
		}
		select {
		case <-exited:
		case <-deadline:
		case <-time.After(20 * time.Millisecond):
			continue
		}
		said, _ := os.ReadFile(log.Name())
		t.Fatalf("%s does not serve %s: %v\n%s", name, url, err, said)
	}
}

// emulator returns the path of a program that .ci/deps installs, or that the machine has.
func emulator(t testing.TB, name string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	_, file, _, _ := runtime.Caller(0)
	ci := filepath.Join(filepath.Dir(file), "..", "..", ".ci")
	for _, folder := range []string{"bin", filepath.Join("node", "node_modules", ".bin")} {
		if path, err := filepath.Abs(filepath.Join(ci, folder, name)); err == nil {
			if _, err := os.Stat(path); err == nil {
				return path
			}
		}
	}
	t.Fatalf("%s is missing: make deps installs it", name)
	return ""
}

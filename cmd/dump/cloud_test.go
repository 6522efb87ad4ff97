package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/rogpeppe/go-internal/testscript"

	"encdump/storage/storagetest"
)

// TestCloudStores runs one script against each service.
func TestCloudStores(t *testing.T) {
	for _, test := range []struct {
		name  string
		start func(t *testing.T) map[string]string // what the script finds in its environment
	}{
		{"azblob", func(t *testing.T) map[string]string {
			connection := storagetest.Azurite(t)
			c, err := container.NewClientFromConnectionString(connection, "backups", nil)
			if err == nil {
				_, err = c.Create(t.Context(), nil)
			}
			if err != nil {
				t.Fatal(err)
			}
			return map[string]string{
				"AZURE_STORAGE_CONNECTION_STRING": connection,
				"STORE":                           "azblob://backups/pg?chunk-size=1MiB",
				"OTHER":                           "azblob://none",
				"LAYOUT":                          "--part-size=0",
			}
		}},
		{"gs", func(t *testing.T) map[string]string {
			endpoint := storagetest.GCS(t)
			resp, err := http.Post(endpoint+"/storage/v1/b", "application/json", strings.NewReader(`{"name":"backups"}`))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			return map[string]string{
				"STORE":  "gs://backups/pg?endpoint=" + endpoint,
				"OTHER":  "gs://none?endpoint=" + endpoint,
				"LAYOUT": "--part-size=100B",
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			env := test.start(t)
			testscript.Run(t, testscript.Params{
				Dir: "testdata/cloud",
				Setup: func(e *testscript.Env) error {
					for name, value := range env {
						e.Setenv(name, value)
					}
					e.Setenv("SCHEME", test.name)
					home := filepath.Join(e.WorkDir, "home")
					e.Setenv("HOME", home)
					e.Setenv("XDG_CONFIG_HOME", filepath.Join(home, "config"))
					e.Setenv("GUID", "4c0a6d2e-8f0b-4b39-9c43-0a4e7f6d1f11")
					return os.MkdirAll(home, 0o700)
				},
				Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
					"status": scriptStatus,
					"sh":     scriptShell,
				},
				RequireExplicitExec: true,
			})
		})
	}
}

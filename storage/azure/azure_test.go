package azure

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"encdump/storage"
	"encdump/storage/storagetest"
)

// azurite starts the emulator and makes it the account of the environment, without what the machine may have set.
func azurite(t *testing.T) (endpoint string) {
	t.Helper()
	connection := storagetest.Azurite(t)
	for _, name := range []string{"ACCOUNT", "KEY", "SAS_TOKEN"} {
		t.Setenv("AZURE_STORAGE_"+name, "")
	}
	t.Setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
	c, err := parseConnectionString(connection)
	if err != nil {
		t.Fatal(err)
	}
	return c.endpoint
}

var containers atomic.Int64

// newContainer makes an empty container, and returns its name and the client that made it.
func newContainer(t *testing.T, endpoint string) (string, *container.Client) {
	t.Helper()
	name := fmt.Sprintf("test-%d", containers.Add(1))
	key, err := blob.NewSharedKeyCredential(storagetest.AzuriteAccount, storagetest.AzuriteKey)
	if err != nil {
		t.Fatal(err)
	}
	c, err := container.NewClientWithSharedKeyCredential(endpoint+"/"+name, key, nil)
	if err == nil {
		_, err = c.Create(context.Background(), nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return name, c
}

// impatient are options under which a test does not wait long.
var impatient = &storage.Options{Patience: 2 * time.Second, Timeout: time.Second}

func openURL(t *testing.T, u string, o *storage.Options) *Bucket {
	t.Helper()
	b, err := storage.OpenURL(t.Context(), u, o)
	if err != nil {
		t.Fatal(err)
	}
	return b.(*Bucket)
}

func TestConformance(t *testing.T) {
	endpoint := azurite(t)
	for name, suffix := range map[string]string{
		"Plain":  "",
		"Prefix": "/backups/pg%20%25+1?chunk-size=4MiB&concurrency=2", // pg %+1
	} {
		t.Run(name, func(t *testing.T) {
			storagetest.Conformance(t, func(t *testing.T) storage.Bucket {
				c, _ := newContainer(t, endpoint)
				return openURL(t, "azblob://"+c+suffix, nil)
			})
		})
	}
}

func TestNetworkFaults(t *testing.T) {
	endpoint := azurite(t)
	u, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("", func(t *testing.T) {
		storagetest.NetworkFaults(t, endpoint, func(t *testing.T, proxy string, o *storage.Options) storage.Bucket {
			c, _ := newContainer(t, endpoint)
			return openURL(t, "azblob://"+c+"/folder?chunk-size=1MiB&endpoint="+proxy+u.Path, o)
		}, func(r *http.Request) bool {
			return r.Method == http.MethodPut && r.URL.Query().Get("comp") != "block"
		})
	})
}

package gcs

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	gcs "cloud.google.com/go/storage"
	"google.golang.org/api/option"

	"encdump/storage"
	"encdump/storage/storagetest"
)

// emulator starts fake-gcs-server, and returns its endpoint and a client for what no Bucket does.
func emulator(t *testing.T) (endpoint string, client *gcs.Client) {
	t.Helper()
	t.Setenv("STORAGE_EMULATOR_HOST", "")
	endpoint = storagetest.GCS(t)
	client, err := gcs.NewClient(context.Background(), option.WithEndpoint(endpoint+"/storage/v1/"), option.WithoutAuthentication())
	if err != nil {
		t.Fatal(err)
	}
	return endpoint, client
}

var buckets atomic.Int64

func newBucket(t *testing.T, client *gcs.Client) string {
	t.Helper()
	name := fmt.Sprintf("test-%d", buckets.Add(1))
	if err := client.Bucket(name).Create(context.Background(), "project", nil); err != nil {
		t.Fatal(err)
	}
	return name
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
	endpoint, client := emulator(t)
	for name, suffix := range map[string]string{
		"Plain":  "?",
		"Prefix": "/backups/pg%20%25+1?chunk-size=1MiB&", // pg %+1
	} {
		t.Run(name, func(t *testing.T) {
			storagetest.Conformance(t, func(t *testing.T) storage.Bucket {
				return openURL(t, "gs://"+newBucket(t, client)+suffix+"endpoint="+endpoint, nil)
			})
		})
	}
}

func TestNetworkFaults(t *testing.T) {
	endpoint, client := emulator(t)
	storagetest.NetworkFaults(t, endpoint, func(t *testing.T, proxy string, o *storage.Options) storage.Bucket {
		return openURL(t, "gs://"+newBucket(t, client)+"/folder?chunk-size=1MiB&endpoint="+proxy, o)
	}, func(r *http.Request) bool {
		part := r.Header.Get("Content-Range")
		return r.URL.Query().Get("uploadType") == "multipart" || part != "" && !strings.HasSuffix(part, "/*")
	})
}

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"encdump/dump/postgres"
	"encdump/storage/storagetest/servers"
)

// The test binary is the program too: a child that is started with asProgram in
// its environment, or under the name dump by a script, runs main.
const asProgram = "DUMP_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	// A key of this machine must not reach the tests, nor one of theirs it.
	systemKeyFile = filepath.Join(os.Getenv("HOME"), "etc-dump-key")
	if os.Getenv(asProgram) != "" {
		os.Unsetenv(asProgram)
		main()
		return
	}
	// Settings of whoever runs the tests must not reach them.
	for _, e := range os.Environ() {
		if filepath.Base(os.Args[0]) == "dump" {
			break // the program in a script, whose settings they are
		}
		if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, "DUMP_") || strings.HasPrefix(name, "PG") {
			os.Unsetenv(name)
		}
	}
	testscript.Main(cleanUp{m}, map[string]func(){"dump": main})
}

// cleanUp stops what the tests have started.
type cleanUp struct{ m *testing.M }

func (c cleanUp) Run() int {
	defer func() {
		clusters.Lock()
		defer clusters.Unlock()
		for _, c := range clusters.all {
			c.Stop()
		}
	}()
	return c.m.Run()
}

// clusters are the throwaway clusters of this run; see startCluster.
var clusters struct {
	sync.Mutex
	all    []*postgres.Cluster
	source *postgres.Cluster
}

// startCluster starts an empty cluster that is stopped when all tests are done.
func startCluster(t testing.TB) *postgres.Cluster {
	t.Helper()
	c, err := postgres.StartCluster(context.Background(), postgres.ClusterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	clusters.Lock()
	defer clusters.Unlock()
	clusters.all = append(clusters.all, c)
	return c
}

// sourceCluster returns the cluster that tests dump. They must not change it.
func sourceCluster(t testing.TB) *postgres.Cluster {
	t.Helper()
	clusters.Lock()
	c := clusters.source
	clusters.Unlock()
	if c == nil {
		c = shopCluster(t)
		clusters.Lock()
		clusters.source = c
		clusters.Unlock()
	}
	return c
}

// shopCluster starts a cluster that holds a small shop.
func shopCluster(t testing.TB) *postgres.Cluster {
	t.Helper()
	c := startCluster(t)
	psql(t, c, "postgres", `
		CREATE ROLE clerk LOGIN PASSWORD 'not so secret';
		CREATE DATABASE shop OWNER clerk;
		\connect shop
		CREATE TABLE orders (id int PRIMARY KEY, note text);
		INSERT INTO orders SELECT i, 'note ' || i FROM generate_series(1, 1000) i;`)
	return c
}

// TestScripts runs what users do, and looks at what they see. Each script has a
// folder of its own, an empty home, a cluster at $PGHOST, an empty bucket
// $S3_BUCKET at $S3_ENDPOINT and the commands of postgres, openssl and aws in its
// path.
func TestScripts(t *testing.T) {
	source, s3 := sourceCluster(t), servers.S3(t, false)
	var buckets atomic.Int32
	const writer, writerSecret = "writerskey", "writerssecret" // may do what policies of buckets say
	s3.MakeUser(t, writer, writerSecret)
	// Scripts run at the same time, and a server is dumped by one at a time.
	ownServer := []string{"script-postgres", "script-select", "script-into"}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			home := filepath.Join(e.WorkDir, "home")
			e.Setenv("HOME", home)
			e.Setenv("XDG_CONFIG_HOME", filepath.Join(home, "config"))
			server := source
			if slices.Contains(ownServer, filepath.Base(e.WorkDir)) {
				server = shopCluster(t)
			}
			e.Setenv("PGHOST", server.SocketDir())
			e.Setenv("PGPORT", fmt.Sprint(server.Port()))
			e.Setenv("PGUSER", "postgres")
			e.Setenv("GUID", "4c0a6d2e-8f0b-4b39-9c43-0a4e7f6d1f11")
			for name, value := range servers.S3Env() {
				e.Setenv(name, value)
			}
			bucket := fmt.Sprintf("bucket-%d", buckets.Add(1))
			s3.MakeBucket(t, bucket, false)
			e.Setenv("S3_BUCKET", bucket)
			e.Setenv("S3_ENDPOINT", s3.Endpoint)
			e.Setenv("S3_OWNER", servers.S3AccessKey)
			e.Setenv("S3_WRITER", writer)
			e.Setenv("S3_WRITER_SECRET", writerSecret)
			return os.MkdirAll(home, 0o700)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"status": scriptStatus,
			"mode":   scriptMode,
			"sh":     scriptShell,
			"flip":   scriptFlip,
		},
		RequireExplicitExec: true,
	})
}

// Package postgrestest starts servers of other major versions for tests.
package postgrestest

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"encdump/dump/postgres"
)

// Majors returns the major versions, beside that of the installed server, that
// tests are to be run with: those of the variable TEST_SERVERS, separated by
// spaces, which "make test-all" sets; otherwise 18.
func Majors(t testing.TB) (majors []int) {
	t.Helper()
	list := os.Getenv("TEST_SERVERS")
	if list == "" {
		list = "18"
	}
	for _, word := range strings.Fields(list) {
		n, err := strconv.Atoi(word)
		if err != nil {
			t.Fatalf("TEST_SERVERS: %v", err)
		}
		majors = append(majors, n)
	}
	return majors
}

// Start starts a throwaway cluster of a major version, which is stopped when the
// test ends. Its programs, initdb, postgres and pg_ctl only, are those that
// .ci/deps installs for "make test" (18) and "make test-all" (the others).
func Start(t testing.TB, major int, o postgres.ClusterOptions) *postgres.Cluster {
	t.Helper()
	root, err := os.Getwd() // that of the test's package
	if err != nil {
		t.Fatal(err)
	}
	for ; !isFile(filepath.Join(root, "go.mod")); root = filepath.Dir(root) {
		if root == filepath.Dir(root) {
			t.Fatal("no go.mod above the working directory")
		}
	}
	o.BinDir = filepath.Join(root, ".ci/pg", strconv.Itoa(major), "bin")
	c, err := postgres.StartCluster(t.Context(), o)
	if err != nil {
		t.Fatalf("PostgreSQL %d, which .ci/deps or .ci/deps all installs: %v", major, err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// rooms is which of our packages each of our packages may import, directly or
// not. A package that is missing here has no place in the house yet.
var rooms = map[string][]string{
	"cmd/dump": {
		"crypto", "dump", "dump/archive", "dump/postgres", "dump/script", "storage",
		"storage/azure", "storage/file", "storage/gcs", "storage/s3",
	},
	"dump": {
		"crypto", "dump/archive", "dump/postgres", "dump/script", "storage", "storage/file",
	},
	"dump/archive":                {"crypto", "dump/script", "storage"},
	"dump/postgres":               {"dump/script"},
	"dump/postgres/postgrestest":  {"dump/postgres", "dump/script"},
	"dump/script":                 {},
	"crypto":                      {},
	"storage":                     {},
	"storage/azure":               {"storage"},
	"storage/file":                {"storage"},
	"storage/gcs":                 {"storage"},
	"storage/s3":                  {"storage"},
	"storage/storagetest":         {"storage"},
	"storage/storagetest/servers": {"storage", "storage/storagetest"},
	"bench":                       {"dump/postgres", "dump/script"},
}

// TestArrows keeps the imports pointing down.
func TestArrows(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}}:{{join .Deps \" \"}}", "encdump/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		path, deps, _ := strings.Cut(strings.TrimSpace(line), ":")
		room := strings.TrimPrefix(path, "encdump/")
		may, ok := rooms[room]
		if !ok {
			t.Errorf("%s is in no room", room)
			continue
		}
		seen++
		for _, dep := range strings.Fields(deps) {
			if dep, ours := strings.CutPrefix(dep, "encdump/"); ours && !slices.Contains(may, dep) {
				t.Errorf("%s must not import %s", room, dep)
			}
		}
	}
	if seen < 8 {
		t.Fatalf("only %d packages were looked at", seen)
	}
}

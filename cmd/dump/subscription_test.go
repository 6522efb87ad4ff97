package main

import (
	"strings"
	"testing"
	"time"

	"encdump/dump/archive"
	"encdump/dump/postgres"
)

// TestSubscriptionCommands runs the commands that a restore prints for a subscription, against its publisher: in the end
// the subscriber has the publisher's rows, those of after the backup too, and each once.
func TestSubscriptionCommands(t *testing.T) {
	logical := func() *postgres.Cluster {
		c, err := postgres.StartCluster(t.Context(), postgres.ClusterOptions{Settings: map[string]string{"wal_level": "logical"}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Stop() })
		return c
	}
	publisher, subscriber, target := logical(), logical(), logical()
	psql(t, publisher, "postgres", "CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t VALUES (1), (2); CREATE PUBLICATION pub FOR TABLE t;")
	connection := postgres.QuoteLiteral(publisher.DSN("postgres"))
	psql(t, subscriber, "postgres", "CREATE DATABASE copy;\n\\connect copy\nCREATE TABLE t (a int PRIMARY KEY);\nCREATE SUBSCRIPTION sub CONNECTION "+connection+" PUBLICATION pub;")
	waitRows := func(c *postgres.Cluster, want string) {
		t.Helper()
		got := ""
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			if got = strings.TrimSpace(psql(t, c, "copy", "SELECT string_agg(a::text, ' ' ORDER BY a) FROM t")); got == want {
				return
			}
		}
		t.Fatalf("rows %q, want %q", got, want)
	}
	waitRows(subscriber, "1 2")
	p := newProgram(t, subscriber)
	p.ok("create")
	psql(t, publisher, "postgres", "INSERT INTO t VALUES (3); DELETE FROM t WHERE a = 1")
	if err := subscriber.Stop(); err != nil {
		t.Fatal(err)
	}

	out := p.ok("restore", "--into", target.DSN("postgres"))
	if !strings.Contains(out, "subscriptions were restored without a connection") {
		t.Fatal(out)
	}
	var commands []string
	for _, c := range subscriptionCommands(archive.ID{}, postgres.Subscription{Database: "copy", Name: "sub"}) {
		c, _, _ = strings.Cut(c, "  --")
		if !strings.Contains(out, c) {
			t.Errorf("not printed: %s", c)
		}
		commands = append(commands, strings.Replace(c, "CONNECTION '…' PUBLICATION …", "CONNECTION "+connection+" PUBLICATION pub", 1))
	}
	psql(t, target, "postgres", strings.Join(commands, "\n"))
	waitRows(target, "2 3")
	psql(t, publisher, "postgres", "INSERT INTO t VALUES (4)")
	waitRows(target, "2 3 4")
	psql(t, target, "copy", "DROP SUBSCRIPTION sub")
}

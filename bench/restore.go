package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"encdump/dump/postgres"
	"encdump/dump/script"
)

// events makes the data of one table, of about a gigabyte at scale 1, as a script that a replay takes.
const events = `COPY (SELECT '2024-01-01'::timestamptz + i * interval '1 second', mod(i, 1000), i * 0.37, decode(md5(i::text), 'hex')
	FROM generate_series(1, (10000000 * %s)::int) i) TO STDOUT`

// restore measures the backup in the folder "ours" against other ways into a fresh server that survives a crash: fsync is on.
func (b *bench) restore(scale string) error {
	if _, err := b.once("pg_dump --format=directory --jobs=2 --file=directory shop"); err != nil {
		return err
	}
	const opened = "cat $(ls -1v ours/* | grep -E '[0-9]{13}-[0-9]+$') | openssl enc -d -aes256 -md md5 -pass file:key 2>/dev/null | gunzip -c"
	fmt.Println("\nrestore that backup into a fresh server, with fsync on")
	if _, err := b.compareInto([]command{
		{"cat \\| openssl \\| gunzip \\| psql", opened + " | psql -X -q -d postgres >/dev/null 2>&1"},
		{"pg_restore -j2 of a directory dump", "pg_restore --create --jobs=2 -d postgres directory"},
		{"dump restore --into --jobs 2 --no-analyze", "exec dump restore --store ours --backup-id latest --into '' --jobs 2 --no-analyze >/dev/null"},
		{"dump restore --into --jobs 2", "exec dump restore --store ours --backup-id latest --into '' --jobs 2 >/dev/null"},
	}, b.shellInto); err != nil {
		return err
	}

	fmt.Println("\nload one table from plain SQL into a fresh server, with fsync on")
	if _, err := b.once("{ printf 'CREATE TABLE events (ts timestamptz, device int, value double precision, payload bytea);\\nCOPY public.events FROM stdin;\\n'; " +
		"psql -X -q -d shop -c \"" + strings.ReplaceAll(fmt.Sprintf(events, scale), "\n", " ") + "\"; printf '\\\\.\\n'; } > events.sql"); err != nil {
		return err
	}
	_, err := b.compareInto([]command{{"one connection", "1"}, {"two connections", "2"}}, func(c *postgres.Cluster, jobs string) error {
		return b.replay(c, int(jobs[0]-'0'))
	})
	return err
}

// compareInto is compare of commands that each get a new server. Processor time is that of the command and of the server, without initdb.
func (b *bench) compareInto(commands []command, run func(*postgres.Cluster, string) error) ([]figures, error) {
	return b.inTurn(commands, func(c command) (figures, error) {
		cluster, err := postgres.StartCluster(b.ctx, postgres.ClusterOptions{Durable: true, Settings: map[string]string{"max_wal_size": "4GB"}})
		if err != nil {
			return figures{}, err
		}
		defer cluster.Stop()
		// What the server has used is counted when it has ended.
		before, start := usage(), time.Now()
		err = run(cluster, c.shell)
		wall := time.Since(start)
		if err := cluster.Stop(); err != nil {
			return figures{}, err
		}
		return figures{wall: wall, cpu: usage() - before}, err
	})
}

// usage returns the processor time of this process and of all its children that have ended.
func usage() (d time.Duration) {
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err == nil {
			d += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return d
}

// shellInto runs a shell command whose PostgreSQL is the cluster.
func (b *bench) shellInto(c *postgres.Cluster, command string) error {
	cmd := b.shell(command)
	cmd.Env = append(cmd.Env, "PGHOST="+c.SocketDir(), fmt.Sprintf("PGPORT=%d", c.Port()))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", command, err, out)
	}
	return nil
}

// replay loads events.sql on that many connections.
func (b *bench) replay(c *postgres.Cluster, jobs int) error {
	server, err := postgres.Connect(b.ctx, postgres.Config{DSN: c.DSN("postgres")})
	if err != nil {
		return err
	}
	defer server.Close()
	f, err := os.Open(filepath.Join(b.dir, "events.sql"))
	if err != nil {
		return err
	}
	defer f.Close()
	r := postgres.NewReplayer(b.ctx, server, postgres.ReplayOptions{Jobs: jobs})
	feeder := script.NewFeeder(r.Item)
	if _, err = io.CopyBuffer(struct{ io.Writer }{feeder}, f, make([]byte, 1<<20)); err == nil {
		err = feeder.Close()
	}
	report, err := r.Finish(err)
	if err == nil && report.Rows == 0 {
		err = fmt.Errorf("nothing was loaded")
	}
	return err
}

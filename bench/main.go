// Bench prints the figures of the README: time and memory of dump as ratios
// against named commands, measured in turn in one run on a throwaway cluster.
//
//	SCALE=1 ROUNDS=5 go run ./bench
//
// SCALE is the size of the data set bench/shop.sql, 1 being about 1.1 GB of SQL. ONLY=restore measures restores into a
// server alone.
package main

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"encdump/dump/postgres"
)

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		stop()
		log.Fatal("bench: ", err)
	}
}

func setting(name, def string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return def
}

// bench is one run: a cluster, a folder, and an environment that finds both.
type bench struct {
	ctx    context.Context
	dir    string
	env    []string
	path   string // its PATH
	rounds int
}

func run(ctx context.Context) error {
	scale := setting("SCALE", "1")
	rounds, err := strconv.Atoi(setting("ROUNDS", "5"))
	if err != nil || rounds < 1 {
		return fmt.Errorf("ROUNDS %q is not a number of rounds", os.Getenv("ROUNDS"))
	}
	program, err := filepath.Abs("bin/dump")
	if err != nil {
		return err
	}
	data, err := filepath.Abs("bench/shop.sql")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "dump-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	cluster, err := postgres.StartCluster(ctx, postgres.ClusterOptions{Settings: map[string]string{
		"max_wal_size": "4GB", "autovacuum": "off",
	}})
	if err != nil {
		return err
	}
	defer cluster.Stop()
	b := &bench{ctx: ctx, dir: dir, rounds: rounds}
	b.path = filepath.Dir(program) + ":" + cluster.BinDir() + ":" + os.Getenv("PATH")
	b.env = append(os.Environ(),
		"PGHOST="+cluster.SocketDir(), fmt.Sprintf("PGPORT=%d", cluster.Port()), "PGUSER=postgres", "LC_ALL=C",
		"DUMP="+program, "DUMP_KEY_FILE="+dir+"/key", "PATH="+b.path)

	for _, c := range []string{
		"dump key generate 2>/dev/null",
		"psql -X -q -v scale=" + scale + " -f " + data + " >/dev/null",
		"vacuumdb --all --quiet --freeze --analyze",
	} {
		if _, err := b.once(c); err != nil {
			return err
		}
	}
	fmt.Printf("bench/shop.sql at scale %s, %d rounds in turn, medians; %s, %d processors\n", scale, rounds, processor(), runtime.NumCPU())
	for _, c := range []string{
		"dump version", "pg_dumpall --version", "openssl version", "gzip --version | head -n 1", "pigz --version",
		"uname -sr",
	} {
		out, err := b.output(c)
		if err != nil {
			return err
		}
		fmt.Println("  " + strings.TrimSpace(out))
	}

	if setting("ONLY", "") == "restore" {
		if _, err := b.once("exec dump create --store ours"); err != nil {
			return err
		}
		return b.restore(scale)
	}
	const openssl = "openssl enc -aes256 -md md5 -pass file:key 2>/dev/null"
	fmt.Println("\ncreate, into a folder")
	create, err := b.compare([]command{
		{"pg_dumpall >/dev/null", "pg_dumpall >/dev/null"},
		{"dump create", "rm -rf ours; exec dump create --store ours"},
		{"pg_dumpall \\| gzip -6 \\| openssl \\| split", "rm -f gz-*; pg_dumpall | gzip -6 | " + openssl + " | split -b 1GB - gz-"},
		{"pg_dumpall \\| pigz -6 \\| openssl \\| split", "rm -f p6-*; pg_dumpall | pigz -6 | " + openssl + " | split -b 1GB - p6-"},
		{"pg_dumpall \\| pigz -1 \\| openssl \\| split", "rm -f p1-*; pg_dumpall | pigz -1 | " + openssl + " | split -b 1GB - p1-"},
	})
	if err != nil {
		return err
	}
	sizes, err := b.output("cat $(ls -1d ours/* | grep -E '[0-9]{13}-[0-9]+$') | wc -c; cat gz-* | wc -c; dump show --store ours --json | sed -n 's/.*\"plain\": \\([0-9]*\\).*/\\1/p'")
	if err != nil {
		return err
	}
	var ours, gzip, plain float64
	if _, err := fmt.Sscan(sizes, &ours, &gzip, &plain); err != nil {
		return fmt.Errorf("sizes %q: %w", sizes, err)
	}
	fmt.Printf("  compression of %.0f MB of SQL: dump create %.3f, gzip -6 %.3f\n", plain/1e6, plain/ours, plain/gzip)

	fmt.Println("\ndecode that backup, into /dev/null")
	decode, err := b.compare([]command{
		{"cat \\| openssl \\| gunzip", "cd ours; cat $(ls -1v | grep -E '[0-9]{13}-[0-9]+$') | openssl enc -d -aes256 -md md5 -pass file:../key 2>/dev/null | gunzip -c >/dev/null"},
		{"dump restore", "exec dump restore --store ours --backup-id latest >/dev/null"},
	})
	if err != nil {
		return err
	}

	if err := b.restore(scale); err != nil {
		return err
	}

	fmt.Println("\npeak memory of the dump process")
	fmt.Printf("  create %.0f MiB, restore %.0f MiB\n", mib(create[1].memory), mib(decode[1].memory))
	wide, err := b.once("rm -rf wide; exec dump create --store wide --jobs 16")
	if err != nil {
		return err
	}
	wideRestore, err := b.once("exec dump restore --store wide --backup-id latest --jobs 16 >/dev/null")
	if err != nil {
		return err
	}
	fmt.Printf("  with --jobs 16: create %.0f MiB, restore %.0f MiB\n", mib(wide.memory), mib(wideRestore.memory))
	return b.s3()
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// command is a shell command with the name that it has in the table.
type command struct{ name, shell string }

// figures of one run of a command.
type figures struct {
	wall, cpu time.Duration
	memory    int64 // peak of the largest process, bytes
}

// compare runs the commands in turn, round by round, and prints the medians,
// and the ratio of each command to the first, round by round.
func (b *bench) compare(commands []command) ([]figures, error) {
	return b.inTurn(commands, func(c command) (figures, error) { return b.once(c.shell) })
}

// inTurn is compare of commands that are run by a function.
func (b *bench) inTurn(commands []command, run func(command) (figures, error)) ([]figures, error) {
	runs := make([][]figures, len(commands))
	for round := range b.rounds + 1 {
		for i, c := range commands {
			f, err := run(c)
			if err != nil {
				return nil, err
			}
			if round > 0 { // the first warms the caches
				runs[i] = append(runs[i], f)
			}
		}
	}
	fmt.Println("| command | seconds | processor seconds | ratio (lowest – highest) |")
	fmt.Println("|---|---|---|---|")
	medians := make([]figures, len(commands))
	for i, c := range commands {
		var wall, cpu, memory, ratio []float64
		for r, f := range runs[i] {
			wall = append(wall, f.wall.Seconds())
			cpu = append(cpu, f.cpu.Seconds())
			memory = append(memory, float64(f.memory))
			ratio = append(ratio, f.wall.Seconds()/runs[0][r].wall.Seconds())
		}
		fmt.Printf("| %s | %.2f | %.2f | %.2f (%.2f – %.2f) |\n", c.name, median(wall), median(cpu), median(ratio), slices.Min(ratio), slices.Max(ratio))
		medians[i] = figures{memory: int64(slices.Max(memory))}
	}
	return medians, nil
}

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	if n := len(x); n%2 == 0 {
		return (x[n/2-1] + x[n/2]) / 2
	}
	return x[len(x)/2]
}

func (b *bench) shell(command string) *exec.Cmd {
	cmd := exec.CommandContext(b.ctx, "bash", "-o", "pipefail", "-c", command)
	cmd.Dir, cmd.Env = b.dir, b.env
	// The whole pipeline ends with us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	return cmd
}

// once runs a shell command and measures it with all that it started.
func (b *bench) once(command string) (figures, error) {
	cmd := b.shell(command)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	start := time.Now()
	err := cmd.Run()
	wall := time.Since(start)
	if err != nil {
		return figures{}, fmt.Errorf("%s: %w\n%s", command, err, stderr.String())
	}
	usage := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	return figures{wall, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), usage.Maxrss * 1024}, nil
}

func (b *bench) output(command string) (string, error) {
	out, err := b.shell(command).Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", command, err)
	}
	return string(out), nil
}

// processor returns the model of the machine's processor.
func processor() string {
	b, _ := os.ReadFile("/proc/cpuinfo") // elsewhere it has no name
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

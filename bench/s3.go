package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// s3 measures against a versitygw on the loopback, where no network hides what the clients cost. The folder ours holds
// a backup.
func (b *bench) s3() (err error) {
	stop, err := b.startS3()
	if err != nil {
		return err
	}
	defer stop()
	clients := []string{"aws --version", `go version -m "$(command -v versitygw)" | awk '$1 == "mod" { print $2, $3 }'`}
	_, err = exec.LookPath("rclone")
	rclone := err == nil
	if rclone {
		clients = append(clients, "rclone version | head -n 1")
	}
	fmt.Println("\nS3 on the loopback")
	for _, c := range clients {
		out, err := b.output(c)
		if err != nil {
			return err
		}
		fmt.Print("  " + out)
	}

	fmt.Println("\ncreate, into S3")
	// The server keeps objects as files; removing these is the fastest way to empty it.
	create, err := b.compare([]command{
		{"dump create, into a folder", "rm -rf folder; exec dump create --store folder"},
		{"dump create, into S3", "rm -rf $S3_DATA/one; exec dump create --store $S3/one?endpoint=$S3_ENDPOINT"},
		{"dump create, into both", "rm -rf folder $S3_DATA/two; exec dump create --store $S3/two?endpoint=$S3_ENDPOINT --store folder"},
	})
	if err != nil {
		return err
	}
	fmt.Printf("  peak memory: S3 %.0f MiB, both %.0f MiB\n", mib(create[1].memory), mib(create[2].memory))

	const parts = "cat $(ls -1vd ours/* | grep -E '[0-9]{13}-[0-9]+$')"
	upload := []command{
		{"aws s3 cp -", parts + " | aws --endpoint-url $S3_ENDPOINT s3 cp --quiet - $S3/aws"},
		{"dump copy", "rm -rf $S3_DATA/copy; exec dump copy latest --from ours --to $S3/copy?endpoint=$S3_ENDPOINT"},
	}
	download := []command{
		{"aws s3 cp … -", "aws --endpoint-url $S3_ENDPOINT s3 cp --quiet $S3/aws - >got"},
		{"dump fetch --encrypted", "rm -rf fetched; exec dump fetch latest --encrypted --output fetched --store $S3/copy?endpoint=$S3_ENDPOINT"},
	}
	if rclone {
		upload = append(upload, command{"rclone rcat", parts + " | rclone rcat bench:bucket/rclone"})
		download = append(download, command{"rclone cat", "rclone cat bench:bucket/rclone >got"})
	}
	fmt.Println("\nupload of that backup's bytes to S3")
	up, err := b.compare(upload)
	if err != nil {
		return err
	}
	fmt.Println("\ndownload of that backup's bytes from S3, to a disk")
	down, err := b.compare(download)
	if err != nil {
		return err
	}
	fmt.Printf("  peak memory: dump copy %.0f MiB, dump fetch %.0f MiB\n", mib(up[1].memory), mib(down[1].memory))
	return nil
}

// startS3 starts a server with an empty bucket, and sets the environment by which all clients find it.
func (b *bench) startS3() (stop func(), err error) {
	path, err := exec.LookPath("versitygw")
	if err != nil {
		if path, err = filepath.Abs(".ci/bin/versitygw"); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	address := l.Addr().String()
	l.Close()
	data := filepath.Join(b.dir, "s3")
	if err := os.Mkdir(data, 0o700); err != nil {
		return nil, err
	}
	b.env = slices.DeleteFunc(b.env, func(v string) bool { return strings.HasPrefix(v, "AWS_") || strings.HasPrefix(v, "RCLONE_") })
	b.env = append(b.env, "PATH="+filepath.Dir(path)+":"+b.path,
		"S3=s3://bucket", "S3_ENDPOINT=http://"+address, "S3_DATA="+filepath.Join(data, "bucket"),
		"AWS_ACCESS_KEY_ID=bench", "AWS_SECRET_ACCESS_KEY=not-a-secret", "AWS_REGION=us-east-1", "AWS_DEFAULT_REGION=us-east-1",
		"AWS_CONFIG_FILE=/nonexistent", "AWS_SHARED_CREDENTIALS_FILE=/nonexistent", "AWS_EC2_METADATA_DISABLED=true",
		"RCLONE_CONFIG=/nonexistent", "RCLONE_CONFIG_BENCH_TYPE=s3", "RCLONE_CONFIG_BENCH_PROVIDER=Other", "RCLONE_CONFIG_BENCH_ENV_AUTH=true",
		"RCLONE_CONFIG_BENCH_ENDPOINT=http://"+address, "RCLONE_CONFIG_BENCH_REGION=us-east-1")
	cmd := exec.CommandContext(b.ctx, path, "--port", address, "--health", "/health", "--keep-alive", "--quiet", "posix", data)
	cmd.Env = []string{"ROOT_ACCESS_KEY=bench", "ROOT_SECRET_KEY=not-a-secret"}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		cmd.Process.Kill()
		cmd.Wait()
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		r, err := http.Get("http://" + address + "/health")
		if err == nil {
			r.Body.Close()
			break
		}
		if time.Now().After(deadline) {
			stop()
			return nil, errors.Join(errors.New("versitygw does not start"), err)
		}
	}
	if _, err := b.once("aws --endpoint-url $S3_ENDPOINT s3 mb $S3 >/dev/null"); err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

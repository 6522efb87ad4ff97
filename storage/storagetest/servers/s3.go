package servers

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// The keys of every S3 server's owner.
const (
	S3AccessKey = "testaccesskey"
	S3SecretKey = "test-secret-key-0123456789"
)

// S3Env is what the AWS tools and SDKs need in their environment to use these keys and no configuration of the machine.
func S3Env() map[string]string {
	return map[string]string{
		"AWS_ACCESS_KEY_ID": S3AccessKey, "AWS_SECRET_ACCESS_KEY": S3SecretKey, "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
		"AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent", "AWS_EC2_METADATA_DISABLED": "true",
	}
}

// SetS3Env makes that the environment of this process, without other settings of AWS. It is for a TestMain: t.Setenv
// would keep tests from running in parallel.
func SetS3Env() {
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, "AWS_") {
			os.Unsetenv(name)
		}
	}
	for name, value := range S3Env() {
		os.Setenv(name, value)
	}
}

// S3Server is a running versitygw, see https://github.com/versity/versitygw.
type S3Server struct {
	Address  string // host:port
	Endpoint string // URL
	CAFile   string // the certificate, with TLS
}

// S3 starts a server with versioning, object lock and users. The environment of the process needs not be S3Env.
func S3(t testing.TB, useTLS bool) *S3Server {
	t.Helper()
	dir, path := t.TempDir(), program(t, "versitygw")
	s := &S3Server{}
	for _, sub := range []string{"iam", "versions", "data"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	client, scheme := http.DefaultClient, "http"
	var extra []string
	if useTLS {
		cert, key := certificate(t, dir)
		s.CAFile, scheme = cert, "https"
		extra = []string{"--cert", cert, "--key", key}
		client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	}
	s.Address = start(t, client, scheme+"://%s/health", func(address string) *exec.Cmd {
		args := append([]string{"--port", address, "--health", "/health", "--keep-alive", "--iam-dir", filepath.Join(dir, "iam"), "--quiet"}, extra...)
		cmd := exec.Command(path, append(args, "posix", "--versioning-dir", filepath.Join(dir, "versions"), filepath.Join(dir, "data"))...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "ROOT_ACCESS_KEY=" + S3AccessKey, "ROOT_SECRET_KEY=" + S3SecretKey}
		return cmd
	})
	s.Endpoint = scheme + "://" + s.Address
	return s
}

// certificate makes one for 127.0.0.1 and localhost that is its own authority.
func certificate(t testing.TB, dir string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// Client returns a client of the owner.
func (s *S3Server) Client() *s3.Client {
	return s3.New(s3.Options{
		BaseEndpoint: &s.Endpoint, UsePathStyle: true, Region: "us-east-1",
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: S3AccessKey, SecretAccessKey: S3SecretKey}, nil
		}),
		HTTPClient: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}},
	})
}

// MakeBucket makes a bucket; with lock it is versioned and objects in it can be locked.
func (s *S3Server) MakeBucket(t testing.TB, name string, lock bool) {
	t.Helper()
	in := &s3.CreateBucketInput{Bucket: &name}
	if lock {
		in.ObjectLockEnabledForBucket = &lock
	}
	if _, err := s.Client().CreateBucket(t.Context(), in); err != nil {
		t.Fatal(err)
	}
}

// MakeUser makes a user who may do only what policies of buckets say.
func (s *S3Server) MakeUser(t testing.TB, accessKey, secretKey string) {
	t.Helper()
	cmd := exec.Command(program(t, "versitygw"), "admin", "--allow-insecure", "--endpoint-url", s.Endpoint, "--access", S3AccessKey, "--secret", S3SecretKey,
		"create-user", "--access", accessKey, "--secret", secretKey, "--role", "user")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("create-user: %v\n%s", err, out)
	}
}

// URL returns the URL of a bucket, or of a prefix of one, with further options, as ("bucket/prefix", "lock-days", "1").
func (s *S3Server) URL(bucket string, options ...string) string {
	query := url.Values{"endpoint": {s.Endpoint}}
	if s.CAFile != "" {
		query.Set("ca-bundle", s.CAFile)
	}
	for i := 0; i < len(options); i += 2 {
		query.Set(options[i], options[i+1])
	}
	return "s3://" + bucket + "?" + query.Encode()
}

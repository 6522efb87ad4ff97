package s3

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"encdump/storage"
)

// LockedUntil implements storage.Locker for the current version of the object. A retention in governance mode counts,
// too, though some users may be permitted to bypass it. A bucket's default retention shows on the object.
func (b *Bucket) LockedUntil(ctx context.Context, key string) (time.Time, error) {
	fail := func(err error) (time.Time, error) { return time.Time{}, b.fail(ctx, "inspect", key, err) }
	if err := storage.ValidKey(key); err != nil {
		return fail(err)
	}
	head, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.bucket, Key: b.key(key)}, b.request(ctx, "HeadObject").apply)
	if err != nil {
		return fail(err)
	}
	held, until := head.ObjectLockLegalHoldStatus, aws.ToTime(head.ObjectLockRetainUntilDate)
	// The headers are missing also where the user may not see them. Only the requests of their own tell.
	if until.IsZero() {
		out, err := b.client.GetObjectRetention(ctx, &s3.GetObjectRetentionInput{Bucket: &b.bucket, Key: b.key(key)}, b.request(ctx, "GetObjectRetention").apply)
		if err != nil && !noLock(err) {
			return fail(err)
		}
		if err == nil && out.Retention != nil {
			until = aws.ToTime(out.Retention.RetainUntilDate)
		}
	}
	if held == "" {
		out, err := b.client.GetObjectLegalHold(ctx, &s3.GetObjectLegalHoldInput{Bucket: &b.bucket, Key: b.key(key)}, b.request(ctx, "GetObjectLegalHold").apply)
		if err != nil && !noLock(err) {
			return fail(err)
		}
		if err == nil && out.LegalHold != nil {
			held = types.ObjectLockLegalHoldStatus(out.LegalHold.Status)
		}
	}
	switch {
	case held == types.ObjectLockLegalHoldStatusOn:
		return storage.FarFuture, nil
	case until.After(time.Now()):
		return until, nil
	}
	return time.Time{}, nil
}

// noLock tells whether the service means that there is no lock: on the object, in the bucket, or at all.
func noLock(err error) bool {
	switch codeOf(err) {
	case "NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError", "InvalidRequest", "NotImplemented", "MethodNotAllowed":
		return true
	}
	return statusOf(err) == http.StatusNotImplemented
}

// Inspect implements storage.Inspector.
func (b *Bucket) Inspect(ctx context.Context) []storage.Setting {
	var all []storage.Setting
	// add asks for a setting; none are the codes that say there is none, in words.
	add := func(name, permission string, ask func(apply func(*s3.Options)) (string, error), none map[string]string) {
		value, err := ask(b.request(ctx, name).apply)
		if err == nil {
			all = append(all, storage.Setting{Name: name, Value: value})
			return
		}
		if value, ok := none[codeOf(err)]; ok {
			all = append(all, storage.Setting{Name: name, Value: value})
			return
		}
		kind := b.kind("inspect", err)
		switch {
		case ctx.Err() != nil:
			err = ctx.Err()
		case kind == storage.ErrPermission:
			err = fmt.Errorf("not permitted, %s is needed: %w", permission, kind)
		case statusOf(err) == http.StatusNotImplemented || statusOf(err) == http.StatusMethodNotAllowed:
			err = &cause{"the service does not know this setting", err}
		default:
			err = b.fail(ctx, "inspect", "", err)
		}
		all = append(all, storage.Setting{Name: name, Err: err})
	}
	add("versioning", "s3:GetBucketVersioning", func(apply func(*s3.Options)) (string, error) {
		out, err := b.client.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: &b.bucket}, apply)
		if err != nil {
			return "", err
		}
		if out.Status == "" {
			return "disabled", nil
		}
		return strings.ToLower(string(out.Status)), nil
	}, map[string]string{"VersioningNotConfigured": "disabled"})
	add("object lock", "s3:GetBucketObjectLockConfiguration", func(apply func(*s3.Options)) (string, error) {
		out, err := b.client.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: &b.bucket}, apply)
		if err != nil {
			return "", err
		}
		return lockText(out.ObjectLockConfiguration), nil
	}, map[string]string{"ObjectLockConfigurationNotFoundError": "disabled", "NoSuchObjectLockConfiguration": "disabled"})
	add("default encryption", "s3:GetEncryptionConfiguration", func(apply func(*s3.Options)) (string, error) {
		out, err := b.client.GetBucketEncryption(ctx, &s3.GetBucketEncryptionInput{Bucket: &b.bucket}, apply)
		if err != nil {
			return "", err
		}
		if c := out.ServerSideEncryptionConfiguration; c != nil {
			for _, rule := range c.Rules {
				if d := rule.ApplyServerSideEncryptionByDefault; d != nil {
					return string(d.SSEAlgorithm), nil
				}
			}
		}
		return "none", nil
	}, map[string]string{"ServerSideEncryptionConfigurationNotFoundError": "none"})
	add("lifecycle", "s3:GetLifecycleConfiguration", func(apply func(*s3.Options)) (string, error) {
		out, err := b.client.GetBucketLifecycleConfiguration(ctx, &s3.GetBucketLifecycleConfigurationInput{Bucket: &b.bucket}, apply)
		if err != nil {
			return "", err
		}
		return b.lifecycleText(out.Rules), nil
	}, map[string]string{"NoSuchLifecycleConfiguration": noLifecycle})
	add("public access", "s3:GetBucketPublicAccessBlock", func(apply func(*s3.Options)) (string, error) {
		out, err := b.client.GetPublicAccessBlock(ctx, &s3.GetPublicAccessBlockInput{Bucket: &b.bucket}, apply)
		if err != nil {
			return "", err
		}
		c := out.PublicAccessBlockConfiguration
		if c != nil && aws.ToBool(c.BlockPublicAcls) && aws.ToBool(c.IgnorePublicAcls) && aws.ToBool(c.BlockPublicPolicy) && aws.ToBool(c.RestrictPublicBuckets) {
			return "blocked", nil
		}
		return "not wholly blocked", nil
	}, map[string]string{"NoSuchPublicAccessBlockConfiguration": "not blocked"})
	return all
}

func lockText(c *types.ObjectLockConfiguration) string {
	switch {
	case c == nil || c.ObjectLockEnabled != types.ObjectLockEnabledEnabled:
		return "disabled"
	case c.Rule == nil || c.Rule.DefaultRetention == nil:
		return "enabled, no default retention"
	}
	d := c.Rule.DefaultRetention
	n, unit := aws.ToInt32(d.Days), "days"
	if n == 0 {
		n, unit = aws.ToInt32(d.Years), "years"
	}
	return fmt.Sprintf("enabled, default retention %d %s (%s)", n, unit, strings.ToLower(string(d.Mode)))
}

const noLifecycle = "abandoned uploads are kept"

// lifecycleText tells what the rules do to abandoned uploads, and to backups.
func (b *Bucket) lifecycleText(rules []types.LifecycleRule) string {
	abandoned, expire := noLifecycle, ""
	for _, rule := range rules {
		//lint:ignore SA1019 the older form, which services still return
		prefix := aws.ToString(rule.Prefix)
		if f := rule.Filter; f != nil {
			prefix = aws.ToString(f.Prefix)
			if f.And != nil {
				prefix = aws.ToString(f.And.Prefix)
			}
		}
		if rule.Status != types.ExpirationStatusEnabled || !strings.HasPrefix(b.prefix, prefix) {
			continue
		}
		if a := rule.AbortIncompleteMultipartUpload; a != nil {
			abandoned = fmt.Sprintf("abandoned uploads are removed after %d days", aws.ToInt32(a.DaysAfterInitiation))
		}
		if e := rule.Expiration; e != nil && aws.ToInt32(e.Days) > 0 {
			expire = fmt.Sprintf("; objects are deleted after %d days", *e.Days)
		}
	}
	return abandoned + expire
}

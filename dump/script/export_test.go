package script

import "testing"

// SetLimit makes a guard pass in pieces what is larger than n.
func (g *Guard) SetLimit(n int) { g.feeder.limit = n }

// CheckScan scans a script in portions of all kinds, with the same result.
func CheckScan(t testing.TB, b []byte) {
	t.Helper()
	scanned(t, b)
}

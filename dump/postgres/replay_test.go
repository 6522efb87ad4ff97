package postgres

import "testing"

// TestLongest: what the busiest connection has decides which tables are loaded by all.
func TestLongest(t *testing.T) {
	for _, test := range []struct {
		sizes []int64
		jobs  int
		want  int64
	}{
		{[]int64{591, 324, 180}, 2, 591},
		{[]int64{5, 5, 5, 5, 5}, 4, 10},
		{[]int64{4, 3, 3, 2}, 2, 6},
		{[]int64{7, 1}, 1, 8},
		{[]int64{7}, 8, 7},
	} {
		var list []*copyIn
		for _, size := range test.sizes {
			list = append(list, &copyIn{bytes: size})
		}
		if got := longest(list, test.jobs); got != test.want {
			t.Errorf("%v on %d: %d", test.sizes, test.jobs, got)
		}
	}
}

// TestSortMemory: as many runs as are sorted can be merged at once.
func TestSortMemory(t *testing.T) {
	for _, size := range []int64{0, 1 << 20, 1 << 30, 1 << 40, 1 << 43} {
		memory := int64(sortMemory(size)) << 10
		if memory < 64<<20 || memory/(264<<10) < 4*size/memory-1 {
			t.Errorf("%d bytes: %d", size, memory)
		}
	}
}

package archive

import (
	"bytes"

	"encdump/dump/script"
)

// scan is what a writer learns of the SQL while it passes: whether it is a whole
// dump, what it holds and where.
type scan struct {
	feeder   *script.Feeder
	complete script.Completeness
	gatherer script.Gatherer
	outliner script.Outliner
	contents *script.Contents // when it has ended
	roles    bool             // roles are created
	bytes    int64
}

func newScan() *scan {
	s := &scan{outliner: script.Outliner{Limit: maxOutline}}
	s.feeder = script.NewFeeder(func(it script.Item) error {
		s.complete.Add(it)
		s.gatherer.Add(it)
		s.outliner.Add(it)
		s.roles = s.roles || it.Kind == script.Statement && bytes.HasPrefix(it.Text, []byte("CREATE ROLE "))
		return nil
	})
	return s
}

// write takes the next bytes of the dump, and does not keep them.
func (s *scan) write(p []byte) {
	s.bytes += int64(len(p))
	s.feeder.Write(p) // fails only as the function above does
}

// kind ends the scan. It returns [KindCluster] or [KindDatabase] where the dump
// is whole, [KindPartial] where it is a whole dump of globals alone, otherwise an error that matches [ErrCutShort].
func (s *scan) kind() (string, error) {
	s.feeder.Close()
	s.contents = s.gatherer.Contents()
	kind, err := s.complete.Kind()
	if kind == KindCluster && s.roles && len(s.contents.Databases) == 0 {
		kind = KindPartial // as of pg_dumpall --globals-only
	}
	return kind, err
}

package script

import "io"

// Outline is a script without its COPY data: enough to select from it and to
// know where the data are.
type Outline []Piece

// Piece of an outline: text of the script, or a run of COPY rows that is left out.
type Piece struct {
	SQL  Name   `json:"sql,omitempty"`
	Rows *Range `json:"rows,omitempty"`
}

// Outliner makes an outline of the items of a script. The zero value is ready
// for the first one.
type Outliner struct {
	// Limit is how much text an outline may hold, in bytes; 0 is no limit.
	Limit   int
	outline Outline
	text    []byte
	size    int
	over    bool
}

// Add takes the next item.
func (o *Outliner) Add(it Item) {
	if o.over {
		return
	}
	if it.Kind != CopyRows {
		o.text = append(o.text, it.Text...)
		o.size += len(it.Text)
		if o.Limit > 0 && o.size > o.Limit {
			o.over, o.outline, o.text = true, nil, nil
		}
		return
	}
	o.flush()
	n := Number(len(it.Text))
	if k := len(o.outline); k > 0 && o.outline[k-1].Rows != nil {
		o.outline[k-1].Rows.Length += n
		return
	}
	o.outline = append(o.outline, Piece{Rows: &Range{Offset: Number(it.Offset), Length: n}})
}

func (o *Outliner) flush() {
	if len(o.text) > 0 {
		o.outline = append(o.outline, Piece{SQL: Name(o.text)})
		o.text = o.text[:0]
	}
}

// Outline returns the outline, when the last item was added; nil where it would
// be over the limit.
func (o *Outliner) Outline() Outline {
	o.flush()
	return o.outline
}

// Items gives the items of the script to s, a [Selector] for one. Rows are read
// with open only where s wants them; of others s sees the end of the data alone.
// Offsets of items mean nothing then.
func (o Outline) Items(s interface {
	Item(Item) error
	WantsData() bool
}, open func(Range) (io.ReadCloser, error),
) error {
	f := NewFeeder(s.Item)
	for _, p := range o {
		if p.Rows == nil {
			if _, err := f.Write([]byte(p.SQL)); err != nil {
				return err
			}
			continue
		}
		if !s.WantsData() {
			continue
		}
		r, err := open(*p.Rows)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		if closeErr := r.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return err
		}
	}
	return f.Close()
}

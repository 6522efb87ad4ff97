package archive

// Decompression of frames. All of a frame is in memory, and its size is known: that allows much more speed than a
// stream does, and it is half of the work of a restore that is not the server's. The way of working, with one table
// for lengths that also holds the literals and a refill of 56 bits at once, is that of libdeflate.

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"sync"
)

var (
	errInflateCorrupt = errors.New("the compressed data of a frame are invalid")
	errInflateShort   = errors.New("a frame is shorter than it says")
	errInflateLong    = errors.New("a frame is longer than it says")
)

const (
	litlenBits, distBits, codeBits = 11, 8, 7 // of a table's first level
	maxCodeLength                  = 15

	// An entry of a table holds in its lowest byte how many bits it takes, those of extra bits included, and in the next
	// one how many of these are the code itself. Above are a literal, or the base of a length or distance.
	entryLiteral = 1 << 31
	entryOther   = 1 << 15 // no literal, length or distance
	entryTable   = 1 << 14 // with entryOther: a second level. Its start is above; the second byte holds its bits
	entryEnd     = 1 << 13 // with entryOther: end of block

	// inflateSlack is how much may be written behind the end of the output: two literals, and a match of the longest
	// length that is copied 16 bytes at a time, behind a check of the end.
	inflateSlack = 2 + 258 + 16
	// inflateTrailer is how much must be readable behind the end of the input.
	inflateTrailer = 8
)

// inflater holds the tables of a block.
type inflater struct {
	litlen, dist [1 << (litlenBits + 1)]uint32 // both of one size, larger than ENOUGH in zlib's inftrees.h

	in  []byte
	end int    // of the compressed bytes in in
	ip  int    // next byte of in
	acc uint64 // bits that were taken from in, the lowest one first
	n   int    // how many of these count; below zero: more were used than there are
}

var inflaters = sync.Pool{New: func() any { return new(inflater) }}

// inflateRaw decompresses deflate data (RFC 1951), which must be all of in but the last inflateTrailer bytes, which are
// anything. It must fill all of out but the last inflateSlack bytes, which are overwritten.
func inflateRaw(out, in []byte) error {
	f := inflaters.Get().(*inflater)
	defer func() {
		f.in = nil
		inflaters.Put(f)
	}()
	f.in, f.end = in, len(in)-inflateTrailer
	f.ip, f.acc, f.n = 0, 0, 0
	size := len(out) - inflateSlack
	op := 0
	for final := false; !final; {
		f.refill()
		final = f.acc&1 != 0
		kind := f.acc >> 1 & 3
		f.take(3)
		var err error
		switch kind {
		case 0:
			op, err = f.stored(out[:size], op)
		case 1:
			f.fixedTables()
			op, err = f.block(out, op)
		case 2:
			if err = f.readTables(); err == nil {
				op, err = f.block(out, op)
			}
		default:
			err = errInflateCorrupt
		}
		if err != nil {
			return err
		}
	}
	switch left := f.left(); {
	case left < 0 || op < size:
		return errInflateShort
	case left >= 8:
		return errInflateLong
	}
	return nil
}

// refill makes 56 bits ready, or what there is. Behind the end it adds nothing, so that what counts goes below zero.
func (f *inflater) refill() {
	if f.ip <= f.end {
		f.acc |= binary.LittleEndian.Uint64(f.in[f.ip:]) << (f.n & 63)
		f.ip += (63 - f.n) >> 3
		f.n |= 56
	}
}

// take uses up to 56 bits.
func (f *inflater) take(n int) {
	f.acc >>= n & 63
	f.n -= n
}

// left is the number of bits that were not used.
func (f *inflater) left() int { return (f.end-f.ip)*8 + f.n }

// stored copies a block that is not compressed.
func (f *inflater) stored(out []byte, op int) (int, error) {
	f.take(f.n & 7)
	at := f.ip - f.n>>3
	if at+4 > f.end {
		return op, errInflateShort
	}
	n := int(binary.LittleEndian.Uint16(f.in[at:]))
	if n^0xffff != int(binary.LittleEndian.Uint16(f.in[at+2:])) {
		return op, errInflateCorrupt
	}
	at += 4
	switch {
	case n > f.end-at:
		return op, errInflateShort
	case n > len(out)-op:
		return op, errInflateLong
	}
	copy(out[op:], f.in[at:at+n])
	f.ip, f.acc, f.n = at+n, 0, 0
	return op + n, nil
}

// block decompresses one block with the tables that were read.
func (f *inflater) block(out []byte, op int) (int, error) {
	var (
		in, end     = f.in, f.end
		ip, acc, n  = f.ip, f.acc, f.n
		size        = len(out) - inflateSlack
		litlen, dst = &f.litlen, &f.dist
	)
	for {
		if op > size {
			return op, errInflateLong
		}
		if ip <= end {
			acc |= binary.LittleEndian.Uint64(in[ip:]) << (n & 63)
			ip += (63 - n) >> 3
			n |= 56
		} else if n+8*(end-ip) <= 0 {
			return op, errInflateShort
		}

		// Up to three literals, of at most 11 bits each; written out, since a loop is slower.
		e := litlen[acc&(1<<litlenBits-1)]
		if e&entryLiteral != 0 {
			acc >>= e & 63
			n -= int(e & 63)
			out[op] = byte(e >> 16)
			op++
			e = litlen[acc&(1<<litlenBits-1)]
			if e&entryLiteral != 0 {
				acc >>= e & 63
				n -= int(e & 63)
				out[op] = byte(e >> 16)
				op++
				e = litlen[acc&(1<<litlenBits-1)]
				if e&entryLiteral != 0 {
					acc >>= e & 63
					n -= int(e & 63)
					out[op] = byte(e >> 16)
					op++
					continue
				}
			}
		}
		if e&entryOther != 0 {
			if e&entryTable != 0 {
				acc >>= litlenBits
				n -= litlenBits
				e = litlen[(e>>16+uint32(acc)&(1<<(e>>8&15)-1))&(1<<(litlenBits+1)-1)]
				if e&entryLiteral != 0 {
					acc >>= e & 63
					n -= int(e & 63)
					out[op] = byte(e >> 16)
					op++
					continue
				}
			}
			if e&entryOther != 0 {
				if e&entryEnd == 0 {
					return op, errInflateCorrupt
				}
				acc >>= e & 63
				n -= int(e & 63)
				if f.ip, f.acc, f.n = ip, acc, n; f.left() < 0 {
					return op, errInflateShort
				}
				if op > size {
					return op, errInflateLong
				}
				return op, nil
			}
		}
		length := int(e>>16&0x1ff) + int(acc&(1<<(e&63)-1)>>(e>>8&15))
		acc >>= e & 63
		n -= int(e & 63)

		if ip <= end {
			acc |= binary.LittleEndian.Uint64(in[ip:]) << (n & 63)
			ip += (63 - n) >> 3
			n |= 56
		}
		e = dst[acc&(1<<distBits-1)]
		if e&entryOther != 0 {
			if e&entryTable != 0 {
				acc >>= distBits
				n -= distBits
				e = dst[(e>>16+uint32(acc)&(1<<(e>>8&15)-1))&(1<<(litlenBits+1)-1)]
			}
			if e&entryOther != 0 {
				return op, errInflateCorrupt
			}
		}
		distance := int(e>>16) + int(acc&(1<<(e&63)-1)>>(e>>8&15))
		acc >>= e & 63
		n -= int(e & 63)
		from := op - distance
		if from < 0 {
			return op, errInflateCorrupt
		}

		// The match may be written up to 15 bytes too long.
		to := op + length
		switch {
		case distance >= 16 || distance >= length:
			for ; ; from += 16 {
				*(*[16]byte)(out[op:]) = *(*[16]byte)(out[from:])
				if op += 16; op >= to {
					break
				}
			}
			op = to
		case distance == 1:
			run := out[op:to]
			for i, b := 0, out[from]; i < len(run); i++ {
				run[i] = b
			}
			op = to
		default: // it repeats what it copies
			for op < to {
				op += copy(out[op:to], out[from:op])
			}
		}
	}
}

// lengthBases and distanceBases are the lengths and distances of RFC 1951, 3.2.5: base, and number of extra bits.
var lengthBases, distanceBases = func() (l, d [32]struct{ base, extra int }) {
	for i, next := 0, 3; i < 28; i++ {
		extra := max(0, i/4-1)
		l[i].base, l[i].extra = next, extra
		next += 1 << extra
	}
	l[28].base = 258
	for i, next := 0, 1; i < 30; i++ {
		extra := max(0, i/2-1)
		d[i].base, d[i].extra = next, extra
		next += 1 << extra
	}
	return l, d
}()

// litlenEntry is the entry of a symbol, but for the bits of its code.
func litlenEntry(symbol int) uint32 {
	switch {
	case symbol < 256:
		return entryLiteral | uint32(symbol)<<16
	case symbol == 256:
		return entryOther | entryEnd
	case symbol < 286:
		b := lengthBases[symbol-257]
		return uint32(b.base)<<16 | uint32(b.extra)
	}
	return entryOther
}

func distEntry(symbol int) uint32 {
	if symbol < 30 {
		b := distanceBases[symbol]
		return uint32(b.base)<<16 | uint32(b.extra)
	}
	return entryOther
}

// buildTable fills a table whose first level has tableBits, from the length of each symbol's code.
func buildTable(table *[1 << (litlenBits + 1)]uint32, tableBits int, lengths []uint8, entry func(symbol int) uint32) error {
	var count, offset [maxCodeLength + 2]int
	longest := 0
	for _, n := range lengths {
		count[n]++
		longest = max(longest, int(n))
	}
	count[0] = 0
	space := 1 << maxCodeLength
	for n := 1; n <= maxCodeLength; n++ {
		offset[n+1] = offset[n] + count[n]
		if space -= count[n] << (maxCodeLength - n); space < 0 {
			return errInflateCorrupt
		}
	}
	if space > 0 {
		// A code that leaves room is one symbol of one bit, or none, as in compress/flate. What has no code is an error.
		if longest > 1 {
			return errInflateCorrupt
		}
		for i := range 1 << tableBits {
			table[i] = entryOther | 1
		}
	}
	var sorted [288]uint16
	for symbol, n := range lengths {
		if n > 0 {
			sorted[offset[n]] = uint16(symbol)
			offset[n]++
		}
	}
	code, i := 0, 0 // codes are counted upwards and stored with the first bit lowest
	second, secondBits, secondOf := 1<<tableBits, 0, -1
	for n := 1; n <= longest; n++ {
		for k := 0; k < count[n]; k++ {
			symbol := int(sorted[i])
			i++
			reversed := int(bits.Reverse16(uint16(code)) >> (16 - n))
			e := entry(symbol)
			if n <= tableBits {
				e = e&^0xf00 + uint32(n) | uint32(n)<<8
				for at := reversed; at < 1<<tableBits; at += 1 << n {
					table[at] = e
				}
			} else {
				if first := reversed & (1<<tableBits - 1); first != secondOf {
					if secondOf >= 0 {
						second += 1 << secondBits
					}
					// It is as large as the codes that remain need.
					secondOf, secondBits = first, n-tableBits
					for room := count[n] - k; room < 1<<secondBits && tableBits+secondBits < longest; {
						secondBits++
						room = room<<1 + count[tableBits+secondBits]
					}
					table[first] = entryOther | entryTable | uint32(secondBits)<<8 | uint32(second)<<16
				}
				rest := n - tableBits
				e = e&^0xf00 + uint32(rest) | uint32(rest)<<8
				for at := reversed >> tableBits; at < 1<<secondBits; at += 1 << rest {
					table[second+at] = e
				}
			}
			code++
		}
		code <<= 1
	}
	return nil
}

// fixedTables are those of RFC 1951, 3.2.6.
func (f *inflater) fixedTables() {
	var lengths [288]uint8
	for i := range lengths {
		switch {
		case i < 144:
			lengths[i] = 8
		case i < 256:
			lengths[i] = 9
		case i < 280:
			lengths[i] = 7
		default:
			lengths[i] = 8
		}
	}
	buildTable(&f.litlen, litlenBits, lengths[:], litlenEntry) // a good code
	for i := range 32 {
		lengths[i] = 5
	}
	buildTable(&f.dist, distBits, lengths[:32], distEntry)
}

// readTables reads the codes of a block, RFC 1951, 3.2.7.
func (f *inflater) readTables() error {
	f.refill()
	nlit, ndist, nlen := int(f.acc&31)+257, int(f.acc>>5&31)+1, int(f.acc>>10&15)+4
	f.take(14)
	if nlit > 286 || ndist > 30 {
		return errInflateCorrupt
	}
	var lengths [320]uint8
	for _, at := range []uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}[:nlen] {
		f.refill()
		lengths[at] = uint8(f.acc & 7)
		f.take(3)
	}
	// The table of these codes has its place in that of the distances, which comes later.
	if err := buildTable(&f.dist, codeBits, lengths[:19], func(symbol int) uint32 { return uint32(symbol) << 16 }); err != nil {
		return err
	}
	if lengths = [320]uint8{}; f.left() < 0 {
		return errInflateShort
	}
	for i := 0; i < nlit+ndist; {
		f.refill()
		e := f.dist[f.acc&(1<<codeBits-1)]
		if e&entryOther != 0 {
			return errInflateCorrupt
		}
		f.take(int(e & 63))
		symbol := uint8(e >> 16)
		if symbol < 16 {
			lengths[i] = symbol
			i++
			continue
		}
		var repeat uint8
		var times int
		switch symbol {
		case 16:
			if i == 0 {
				return errInflateCorrupt
			}
			repeat, times = lengths[i-1], 3+int(f.acc&3)
			f.take(2)
		case 17:
			times = 3 + int(f.acc&7)
			f.take(3)
		case 18:
			times = 11 + int(f.acc&127)
			f.take(7)
		}
		if i+times > nlit+ndist {
			return errInflateCorrupt
		}
		for range times {
			lengths[i] = repeat
			i++
		}
	}
	if f.left() < 0 {
		return errInflateShort
	}
	if lengths[256] == 0 {
		return errInflateCorrupt // no block ends without it
	}
	if err := buildTable(&f.litlen, litlenBits, lengths[:nlit], litlenEntry); err != nil {
		return err
	}
	return buildTable(&f.dist, distBits, lengths[nlit:nlit+ndist], distEntry)
}

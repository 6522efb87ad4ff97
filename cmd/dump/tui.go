package main

// What a person sees, and where:
//
//   - errors are "dump: error: …", one line, in lower case without a full stop,
//     then "dump: hint: …" where there is a way out; warnings "dump: warning: …";
//   - all of these, progress and questions go to standard error, results to
//     standard output;
//   - questions are answered at the terminal, never from standard input;
//   - progress is drawn only where standard error is a terminal.

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"encdump/dump"
)

func report(err error, hint string) {
	fmt.Fprintln(os.Stderr, "dump: error: "+oneLine(err.Error()))
	if hint != "" {
		fmt.Fprintln(os.Stderr, "dump: hint: "+hint)
	}
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "dump: "+format+"\n", args...) }

// oneLine makes several joined errors one line.
func oneLine(s string) string { return strings.ReplaceAll(strings.TrimSpace(s), "\n", "; ") }

func joinWords(words []string) string { return strings.Join(words, ", ") }

func stderrIsTerminal() bool { return term.IsTerminal(int(os.Stderr.Fd())) }

// openTerminal opens the terminal that the program runs on, whatever standard
// input and output are; an error where there is none.
func openTerminal() (*os.File, error) { return os.OpenFile("/dev/tty", os.O_RDWR, 0) }

// confirm asks at the terminal; where there is none it fails and says what to do.
func confirm(ctx context.Context, question string) error {
	tty, err := openTerminal()
	if err != nil {
		return usage("--yes does it without asking, --dry-run only shows what would be done", "there is no terminal to ask at")
	}
	defer tty.Close()
	fmt.Fprintf(tty, "dump: %s [y/N] ", question)
	answer, err := waitFor(ctx, func() ([]byte, error) { return bufio.NewReader(tty).ReadBytes('\n') })
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(string(answer))) {
	case "y", "yes":
		return nil
	}
	return &statusError{errors.New("not confirmed; nothing was changed"), "", statusFailed}
}

// waitFor waits for an answer, or for a signal.
func waitFor(ctx context.Context, read func() ([]byte, error)) ([]byte, error) {
	type answer struct {
		text []byte
		err  error
	}
	c := make(chan answer, 1)
	go func() {
		text, err := read()
		c <- answer{text, err}
	}()
	select {
	case a := <-c:
		return a.text, a.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// askSecret reads a line at the terminal without showing it.
func askSecret(ctx context.Context, prompt string) ([]byte, error) {
	tty, err := openTerminal()
	if err != nil {
		return nil, usage("pipe the passphrase in", "there is no terminal to ask at")
	}
	defer tty.Close()
	before, err := term.GetState(int(tty.Fd()))
	if err != nil {
		return nil, err
	}
	fmt.Fprint(tty, prompt)
	defer fmt.Fprintln(tty)
	defer term.Restore(int(tty.Fd()), before)
	return waitFor(ctx, func() ([]byte, error) { return term.ReadPassword(int(tty.Fd())) })
}

// newLogger prints warnings and errors, with verbose everything, each as a line.
func newLogger(verbose bool) *slog.Logger {
	level := slog.LevelWarn
	if verbose {
		level = slog.LevelDebug
	}
	return slog.New(lineHandler{level})
}

// lineHandler prints records as "dump: warning: text: err (store /var/backups)".
type lineHandler struct{ level slog.Level }

func (h lineHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }
func (h lineHandler) WithAttrs([]slog.Attr) slog.Handler           { return h }
func (h lineHandler) WithGroup(string) slog.Handler                { return h }

func (h lineHandler) Handle(_ context.Context, r slog.Record) error {
	line := "dump: "
	switch {
	case r.Level >= slog.LevelError:
		line += "error: "
	case r.Level >= slog.LevelWarn:
		line += "warning: "
	}
	line += r.Message
	var rest []string
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "err" || a.Key == "error" || a.Key == "cause" {
			line += ": " + a.Value.String()
		} else {
			rest = append(rest, a.Key+" "+a.Value.String())
		}
		return true
	})
	if len(rest) > 0 {
		line += " (" + strings.Join(rest, ", ") + ")"
	}
	_, err := fmt.Fprintln(os.Stderr, oneLine(line))
	return err
}

// newProgress draws on standard error where that is a terminal.
func newProgress() dump.Progress {
	if !stderrIsTerminal() {
		return nil
	}
	return &bar{}
}

// bar is a line that says what goes on, and, as soon as bytes are counted, a bar with them.
type bar struct {
	mu    sync.Mutex
	text  string
	total int64
	bar   *progressbar.ProgressBar
}

func (b *bar) Start(phase string, total int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bar, b.total = nil, total
	b.show(phase)
}

func (b *bar) Add(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bar == nil {
		b.bar = progressbar.NewOptions64(b.total,
			progressbar.OptionSetDescription("dump: "+b.text),
			progressbar.OptionSetWriter(os.Stderr),
			progressbar.OptionShowBytes(true),
			progressbar.OptionShowCount(),
			progressbar.OptionShowTotalBytes(true),
			progressbar.OptionUseIECUnits(false),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionSetWidth(20),
			progressbar.OptionSpinnerType(14),
			progressbar.OptionSetSpinnerChangeInterval(0), // it would draw for ever, over whatever comes next
			progressbar.OptionSetPredictTime(b.total > 0),
			progressbar.OptionClearOnFinish(),
		)
	}
	b.bar.Add64(n)
}

// describe changes what stands before the numbers.
func (b *bar) describe(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bar != nil && !b.bar.IsFinished() {
		b.text = text
		b.bar.Describe("dump: " + text)
		return
	}
	b.show(text)
}

func (b *bar) Done() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bar = nil
	fmt.Fprint(os.Stderr, "\r\033[K")
}

// show writes the line without numbers.
func (b *bar) show(text string) {
	b.text = text
	fmt.Fprint(os.Stderr, "\r\033[Kdump: "+text)
}

// size prints bytes in decimal units, as part sizes are given.
func size(n int64) string { return humanize.Bytes(uint64(max(n, 0))) }

// count writes a number of things.
func count(n int64, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return humanize.Comma(n) + " " + thing
}

func compared(tables int, rows int64) string {
	return count(int64(tables), "table") + ", " + count(rows, "row")
}

func instant(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

func age(t time.Time) string { return humanize.Time(t) }

// table prints rows in columns.
func table(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	return t.Flush()
}

package postgres

// The options of pg_dumpall that an operator may add, and what they leave out.

import (
	"fmt"
	"slices"
	"strings"
)

// effect is what an option does to a backup.
type effect int

const (
	keeps   effect = iota // every object and every row is still there
	leaves                // something is left out
	refused               // ours: output and connection
)

// dumpOption is one option of pg_dumpall.
type dumpOption struct {
	long   string // without dashes
	short  byte   // 0 for none
	value  bool   // takes a value
	effect effect
}

// dumpOptions are the options of pg_dumpall 9.6 to 18. Options that are not here count as leaving something out.
var dumpOptions = []dumpOption{
	// Where the output goes, and in what form.
	{"file", 'f', true, refused},
	{"format", 'F', true, refused},
	// Which server: --source says that. -l chooses only the database that the first connection goes to.
	{"dbname", 'd', true, refused},
	{"host", 'h', true, refused},
	{"port", 'p', true, refused},
	{"username", 'U', true, refused},
	// It would wait for somebody to type.
	{"password", 'W', false, refused},
	// They print something else than a dump.
	{"help", '?', false, refused},
	{"version", 'V', false, refused},

	// How the script is written, not what is in it.
	{"clean", 'c', false, keeps},
	{"if-exists", 0, false, keeps},
	{"inserts", 0, false, keeps},
	{"column-inserts", 0, false, keeps},
	{"attribute-inserts", 0, false, keeps},
	{"rows-per-insert", 0, true, keeps},
	{"on-conflict-do-nothing", 0, false, keeps},
	{"quote-all-identifiers", 0, false, keeps},
	{"disable-dollar-quoting", 0, false, keeps},
	{"disable-triggers", 0, false, keeps},
	{"load-via-partition-root", 0, false, keeps},
	{"use-set-session-authorization", 0, false, keeps},
	{"extra-float-digits", 0, true, keeps},
	{"encoding", 'E', true, keeps}, // a character that it lacks is an error, not a loss
	{"superuser", 'S', true, keeps},
	{"restrict-key", 0, true, keeps},
	{"oids", 'o', false, keeps}, // adds something; until version 11
	// How the dump is made.
	{"lock-wait-timeout", 0, true, keeps},
	{"verbose", 'v', false, keeps},
	{"role", 0, true, keeps},
	{"database", 'l', true, keeps},
	{"no-password", 'w', false, keeps},
	{"no-sync", 0, false, keeps},
	{"sequence-data", 0, false, keeps}, // they are dumped anyway, except without data
	// The planner's statistics are no data: ANALYZE makes them anew.
	{"statistics", 0, false, keeps},
	{"no-statistics", 0, false, keeps},
	// Managed services let nobody read passwords, so there this is as whole as a backup can be.
	{"no-role-passwords", 0, false, keeps},
	// Storage settings: all objects and rows are there, stored in the way that the new server prefers.
	{"no-toast-compression", 0, false, keeps},
	{"no-table-access-method", 0, false, keeps},
	// Such rows do not outlive a crash of the server, and a standby never has them.
	{"no-unlogged-table-data", 0, false, keeps},

	// Objects or rows are missing.
	{"data-only", 'a', false, leaves},
	{"schema-only", 's', false, leaves},
	{"globals-only", 'g', false, leaves},
	{"roles-only", 'r', false, leaves},
	{"tablespaces-only", 't', false, leaves},
	{"statistics-only", 0, false, leaves},
	{"no-data", 0, false, leaves},
	{"no-schema", 0, false, leaves},
	{"exclude-database", 0, true, leaves},
	{"filter", 0, true, leaves},
	{"no-owner", 'O', false, leaves},
	{"no-privileges", 'x', false, leaves},
	{"no-acl", 0, false, leaves},
	{"no-comments", 0, false, leaves},
	{"no-policies", 0, false, leaves},
	{"no-publications", 0, false, leaves},
	{"no-subscriptions", 0, false, leaves},
	{"no-security-labels", 0, false, leaves},
	{"no-tablespaces", 0, false, leaves},
	{"binary-upgrade", 0, false, leaves}, // for pg_upgrade alone: it relies on the files of the old cluster
}

// OptionError is a pg_dumpall option that cannot be passed on.
type OptionError struct {
	Option string // as it was given
	reason string
	hint   string
}

func (e *OptionError) Error() string {
	return fmt.Sprintf("pg_dumpall option %s %s", e.Option, e.reason)
}

// Hint tells what to do instead.
func (e *OptionError) Hint() string { return e.hint }

// CheckDumpOptions looks at options for pg_dumpall that an operator gave. partial is true when the dump would lack
// objects or rows, and for options that are not known. The error is an *OptionError: for options that set the output or
// the connection, in any spelling that getopt_long takes, for ambiguous abbreviations and for arguments that are no
// options.
func CheckDumpOptions(args []string) (partial bool, err error) {
	_, partial, err = parseDumpOptions(args)
	return partial, err
}

// parseDumpOptions reads arguments as getopt_long does and returns the long names of the options among them.
func parseDumpOptions(args []string) (names []string, partial bool, err error) {
	add := func(given string, o dumpOption) error {
		if o.effect == refused {
			return &OptionError{given, "is not allowed: dump sets output and connection itself", "choose the server with --source, and leave the option out"}
		}
		names = append(names, o.long)
		partial = partial || o.effect != keeps
		return nil
	}
	positional := func(arg string) error {
		return &OptionError{fmt.Sprintf("%q", arg), "is an argument that no option takes", "write the value of an option as --option=value"}
	}
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case arg == "--":
			if i+1 < len(args) {
				return nil, false, positional(args[i+1])
			}
		case strings.HasPrefix(arg, "--"):
			name, _, hasValue := strings.Cut(arg[2:], "=")
			o, err := longOption(name)
			if err != nil {
				return nil, false, err
			}
			if err := add("--"+name, o); err != nil {
				return nil, false, err
			}
			if o.value && !hasValue {
				i++
			}
		case len(arg) > 1 && arg[0] == '-':
			for j := 1; j < len(arg); j++ {
				k := slices.IndexFunc(dumpOptions, func(o dumpOption) bool { return o.short == arg[j] })
				o := dumpOption{long: "-" + arg[j:j+1], effect: leaves}
				if k >= 0 {
					o = dumpOptions[k]
				}
				if err := add("-"+arg[j:j+1], o); err != nil {
					return nil, false, err
				}
				if o.value { // the rest of the word, or the next one
					if j+1 == len(arg) {
						i++
					}
					break
				}
			}
		default:
			return nil, false, positional(arg)
		}
	}
	return names, partial, nil
}

// longOption finds a long option by its name or an abbreviation. Of what a prefix may mean in one version of pg_dumpall
// or another, the worst counts.
func longOption(name string) (dumpOption, error) {
	var found []dumpOption
	for _, o := range dumpOptions {
		if o.long == name {
			return o, nil
		}
		if strings.HasPrefix(o.long, name) {
			found = append(found, o)
		}
	}
	if len(found) == 0 {
		return dumpOption{long: name, effect: leaves}, nil
	}
	var names []string
	for _, o := range found {
		if o.effect == refused {
			return o, nil
		}
		names = append(names, "--"+o.long)
	}
	if len(found) > 1 {
		return dumpOption{}, &OptionError{"--" + name, "is ambiguous", "it may mean " + strings.Join(names, ", ")}
	}
	return found[0], nil
}

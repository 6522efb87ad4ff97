package postgres

import (
	"errors"
	"strings"
	"testing"
)

func TestCheckDumpOptions(t *testing.T) {
	const whole, part, no = "whole", "partial", "refused"
	for args, want := range map[string]string{
		"":                                whole,
		"-c --if-exists":                  whole,
		"-cv":                             whole,
		"-cvE UTF8":                       whole,
		"-EUTF8 -c":                       whole,
		"-cEUTF8":                         whole,
		"--encoding UTF8":                 whole,
		"--encoding=UTF8":                 whole,
		"--enc UTF8":                      whole,
		"-w --no-password":                whole,
		"-l db -S su --role r":            whole,
		"-ldb":                            whole,
		"--lock-wait-timeout=5":           whole,
		"--rows-per-insert 5 --no-sync":   whole,
		"--restrict-key k":                whole,
		"--no-role-passwords":             whole,
		"--no-unlogged-table-data":        whole,
		"--statistics":                    whole,
		"--no-statistics":                 whole,
		"--no-toast-compression":          whole,
		"--":                              whole,
		"-E -g":                           whole, // the value of -E
		"-g":                              part,
		"-cg":                             part,
		"--globals-only":                  part,
		"--glob":                          part,
		"-s":                              part,
		"-a":                              part,
		"-t":                              part,
		"-r":                              part,
		"-O":                              part,
		"-x":                              part,
		"--no-acl":                        part,
		"--exclude-database=x":            part,
		"--exclude-database x":            part,
		"--filter f":                      part,
		"--no-comments":                   part,
		"--no-data":                       part,
		"--statistics-only":               part,
		"--some-new-option":               part,
		"--some-new-option=x":             part,
		"-Z":                              part,
		"-f x":                            no,
		"-fx":                             no,
		"-cfx":                            no,
		"--file x":                        no,
		"--file=x":                        no,
		"--fil=x":                         no,
		"--fi x":                          no,
		"-F c":                            no,
		"--format=c":                      no,
		"-d x":                            no,
		"--dbname=x":                      no,
		"--dbn=x":                         no,
		"-h x":                            no,
		"-hx":                             no,
		"-gh x":                           no,
		"--host=x":                        no,
		"--ho x":                          no,
		"-p 1":                            no,
		"--port 1":                        no,
		"-Ux":                             no,
		"--username x":                    no,
		"--user x":                        no,
		"-W":                              no,
		"--password":                      no,
		"--pass":                          no,
		"--help":                          no,
		"-V":                              no,
		"x":                               no,
		"-":                               no,
		"-c x":                            no,
		"-- x":                            no,
		"-- -f":                           no,
		"--ro x":                          no, // role, roles-only or rows-per-insert
		"--some-new-option x":             no,
		"--lock-wait-timeout -c --file x": no,
	} {
		partial, err := CheckDumpOptions(strings.Fields(args))
		got := whole
		var e *OptionError
		if partial {
			got = part
		}
		if errors.As(err, &e) {
			got = no
			if e.Hint() == "" {
				t.Errorf("%s: no hint", args)
			}
		} else if err != nil {
			t.Errorf("%s: %v", args, err)
		}
		if got != want {
			t.Errorf("%s: %s, want %s (%v)", args, got, want, err)
		}
	}
	_, err := CheckDumpOptions([]string{"-gh", "secret-host"})
	contains(t, err.Error(), "-h ")
}

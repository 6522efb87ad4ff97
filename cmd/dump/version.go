package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"encdump/dump/archive"
)

// version is set by the build; see Makefile.
var version = ""

func tool() archive.Tool {
	v := version
	if v == "" {
		if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
			v = info.Main.Version
		} else {
			v = "0.1.0-dev"
		}
	}
	return archive.Tool{Name: "dump", Version: v}
}

func newVersion() *cobra.Command {
	return command("version [flags]", "print the version", "version prints the versions of this program and of its format.", noArguments,
		func(_ context.Context, f flags, _ []string) error {
			if f.is("json") {
				return printJSON(struct {
					Version string `json:"version"`
					Format  int    `json:"format"`
					Go      string `json:"go"`
				}{tool().Version, archive.Version, runtime.Version()})
			}
			fmt.Printf("dump %s (format %d, %s)\n", tool().Version, archive.Version, runtime.Version())
			return nil
		})
}

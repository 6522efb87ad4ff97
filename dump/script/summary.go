package script

import (
	"bytes"
	"slices"
)

// Summary is what a restore must know of a script before it begins.
type Summary struct {
	Databases     []SummaryDatabase
	Roles         []string // that it creates
	Tablespaces   []SummaryTablespace
	GlobalObjects int // statements outside of databases
}

// SummaryDatabase is a database of the script. Its name is empty where the script, one of pg_dump, names none.
type SummaryDatabase struct {
	Name       string
	Created    bool     // by a CREATE DATABASE
	Statements int      // that make or fill something
	Extensions []string // that it creates
}

// SummaryTablespace is a tablespace that the script creates.
type SummaryTablespace struct{ Name, Location string }

// Summarizer makes a summary of the items of a script. The zero value is ready for the first one.
type Summarizer struct {
	summary Summary
	steps   Steps
	cluster bool // a script of pg_dumpall, which begins outside of databases
	inside  bool
	current int
	more    bool
}

// Item takes the next item. It never fails.
func (s *Summarizer) Item(it Item) error {
	switch it.Kind {
	case Blank:
		for line := range commentLines(it) {
			s.cluster = s.cluster || string(line) == "-- PostgreSQL database cluster dump"
		}
	case Meta:
		if name, ok := ParseConnect(it.Text); ok {
			s.current, s.inside, s.steps = s.database(name), true, Steps{}
		}
	case Statement:
		if !s.more {
			s.statement(it.Text)
		}
		s.more = it.More
	}
	return nil
}

// Summary returns the summary, when the last item was given.
func (s *Summarizer) Summary() *Summary { return &s.summary }

func (s *Summarizer) database(name string) int {
	i := slices.IndexFunc(s.summary.Databases, func(d SummaryDatabase) bool { return d.Name == name })
	if i < 0 {
		i = len(s.summary.Databases)
		s.summary.Databases = append(s.summary.Databases, SummaryDatabase{Name: name})
	}
	return i
}

func (s *Summarizer) statement(text []byte) {
	step := s.steps.Next(text)
	switch {
	case step.Lane == Session:
		return
	case step.Kind == "database" || step.Kind == KindInDatabase:
		if step.Verb == "create" {
			s.summary.Databases[s.database(step.Name)].Created = true
		}
		return
	case !s.inside && s.cluster:
		s.summary.GlobalObjects++
		if step.Verb == "create" && step.Kind == "role" {
			s.summary.Roles = append(s.summary.Roles, step.Name)
		}
		if step.Verb == "create" && step.Kind == "tablespace" {
			p := tokens{text: bytes.TrimSpace(text)}
			location := ""
			if p.find("location") {
				_, location = p.next()
			}
			s.summary.Tablespaces = append(s.summary.Tablespaces, SummaryTablespace{step.Name, location})
		}
		return
	case !s.inside:
		s.current, s.inside = s.database(""), true
	}
	d := &s.summary.Databases[s.current]
	if step.Verb == "create" && step.Kind == "extension" {
		d.Extensions = append(d.Extensions, step.Name)
	}
	if step.Verb != "comment" || step.Kind != "extension" {
		d.Statements++
	}
}

package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Properties are what a database has from the outside, and what a script of pg_dump without --create leaves as it is:
// how it was created, its owner, privileges, comment and settings.
type Properties struct {
	creation []string // options of CREATE DATABASE
	changes  []string // statements, with nameHere in the place of the name
	settings []databaseSetting
}

const nameHere = "\x00"

// databaseSetting is one of ALTER DATABASE, or, with a role, of ALTER ROLE IN DATABASE.
type databaseSetting struct{ role, name, value string }

// Properties reads those of a database that exists.
func (s *Server) Properties(ctx context.Context, database string) (*Properties, error) {
	p, err := s.properties(ctx, database)
	if err != nil {
		return nil, fmt.Errorf("properties of database %q: %w", database, err)
	}
	return p, nil
}

func (s *Server) properties(ctx context.Context, database string) (*Properties, error) {
	provider, locale, rules := "'c'", "''", "''"
	if s.info.Version >= 150000 {
		provider, locale = "datlocprovider", "daticulocale"
	}
	if s.info.Version >= 160000 {
		rules = "daticurules"
	}
	if s.info.Version >= 170000 {
		locale = "datlocale"
	}
	r, err := queryRow(ctx, s.conn, `SELECT pg_catalog.pg_encoding_to_char(encoding), datcollate, datctype, spcname, `+provider+`, coalesce(`+locale+`, ''), coalesce(`+rules+`, ''),
		pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(datdba)), datconnlimit, datistemplate::pg_catalog.text, pg_catalog.shobj_description(d.oid, 'pg_database'), datacl IS NOT NULL
		FROM pg_catalog.pg_database d JOIN pg_catalog.pg_tablespace t ON t.oid = dattablespace WHERE datname = `+QuoteLiteral(database))
	if err != nil {
		return nil, err
	}
	if r == nil {
		return nil, errors.New("it does not exist")
	}
	p := &Properties{creation: []string{"ENCODING " + QuoteLiteral(r[0]), "LC_COLLATE " + QuoteLiteral(r[1]), "LC_CTYPE " + QuoteLiteral(r[2]), "TABLESPACE " + quoteIdent(r[3])}}
	switch r[4] {
	case "i":
		p.creation = append(p.creation, "LOCALE_PROVIDER icu", "ICU_LOCALE "+QuoteLiteral(r[5]))
		if r[6] != "" {
			p.creation = append(p.creation, "ICU_RULES "+QuoteLiteral(r[6]))
		}
	case "b":
		p.creation = append(p.creation, "LOCALE_PROVIDER builtin", "BUILTIN_LOCALE "+QuoteLiteral(r[5]))
	}
	owner := r[7]
	change := func(verb, rest string) { p.changes = append(p.changes, verb+" DATABASE "+nameHere+" "+rest) }
	change("ALTER", "OWNER TO "+owner)
	change("ALTER", "WITH CONNECTION LIMIT "+r[8]+" IS_TEMPLATE "+r[9])
	if r[10] != "" {
		change("COMMENT ON", "IS "+QuoteLiteral(r[10]))
	}
	if r[11] == "t" {
		change("REVOKE ALL ON", "FROM PUBLIC, "+owner)
	}
	rows, err := s.query(ctx, `SELECT privilege_type, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(grantee)) END, is_grantable
		FROM pg_catalog.pg_database, pg_catalog.aclexplode(datacl) WHERE datname = `+QuoteLiteral(database))
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		option := ""
		if r[2] == "t" {
			option = " WITH GRANT OPTION"
		}
		change("GRANT "+r[0]+" ON", "TO "+r[1]+option)
	}
	rows, err = s.query(ctx, `SELECT coalesce(rolname, ''), pg_catalog.unnest(setconfig) FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_database d ON d.oid = setdatabase
		LEFT JOIN pg_catalog.pg_roles r ON r.oid = setrole WHERE datname = `+QuoteLiteral(database))
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		name, value, _ := strings.Cut(r[1], "=")
		p.settings = append(p.settings, databaseSetting{r[0], name, value})
	}
	return p, nil
}

// CreateDatabase makes an empty database, for the script of a single one; like, which may be nil, says in what encoding,
// locale and tablespace.
func (s *Server) CreateDatabase(ctx context.Context, name string, like *Properties) error {
	sql := "CREATE DATABASE " + quoteIdent(name) + " TEMPLATE template0"
	if like != nil {
		sql += " " + strings.Join(like.creation, " ")
	}
	if err := runSQL(ctx, s.conn, sql); err != nil {
		return fmt.Errorf("create database %q: %w", name, err)
	}
	return nil
}

// lists are the settings whose elements are quoted one by one (GUC_LIST_QUOTE), of those that a database can have. The server splits them best itself.
var lists = []string{"local_preload_libraries", "search_path", "session_preload_libraries", "temp_tablespaces"}

// SetProperties gives a database that was just created the owner, privileges, comment and settings of another one.
func (s *Server) SetProperties(ctx context.Context, database string, p *Properties) error {
	name := quoteIdent(database)
	for _, change := range p.changes {
		if err := runSQL(ctx, s.conn, strings.ReplaceAll(change, nameHere, name)); err != nil {
			return fmt.Errorf("properties of database %q: %w", database, err)
		}
	}
	for _, x := range p.settings {
		pieces := strings.Split(x.name, ".")
		for i := range pieces {
			pieces[i] = quoteIdent(pieces[i])
		}
		alter := "ALTER DATABASE " + name
		if x.role != "" {
			alter = "ALTER ROLE " + quoteIdent(x.role) + " IN DATABASE " + name
		}
		alter += " SET " + strings.Join(pieces, ".")
		set := alter + " TO " + QuoteLiteral(x.value)
		if slices.Contains(lists, strings.ToLower(x.name)) {
			set = fmt.Sprintf("BEGIN; SELECT pg_catalog.set_config(%s, %s, true); %s FROM CURRENT; COMMIT", QuoteLiteral(x.name), QuoteLiteral(x.value), alter)
		}
		err := runSQL(ctx, s.conn, set)
		if err != nil {
			return fmt.Errorf("setting %s of database %q: %w", x.name, database, err)
		}
	}
	return nil
}

package arch

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Violation is one place that breaks a rule.
type Violation struct {
	Where string // file or folder, with the line where there is one
	What  string
}

// String is "where: what".
func (v Violation) String() string { return v.Where + ": " + v.What }

// Check reads every Go file below the root of fsys and returns what breaks the rules, in the order
// of the walk. It fails only on files that cannot be read or parsed.
func Check(fsys fs.FS, rules Rules) ([]Violation, error) {
	c := checker{rules: rules, files: token.NewFileSet(), packages: map[string]*pkg{}}
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && skipped(name):
			return fs.SkipDir
		case d.IsDir() || path.Ext(name) != ".go":
			return nil
		}
		return c.file(fsys, name)
	})
	if err != nil {
		return nil, fmt.Errorf("architecture check: %w", err)
	}
	c.folders()
	return c.found, nil
}

// skipped tells the folders that the go command skips too, and the build's output.
func skipped(folder string) bool {
	name := path.Base(folder)
	return folder == "build" || name == "testdata" || name != "." && strings.IndexAny(name, "._") == 0
}

type checker struct {
	rules    Rules
	files    *token.FileSet
	packages map[string]*pkg // by folder
	found    []Violation
}

// pkg is what the walk remembers of one folder until all its files were read.
type pkg struct {
	name, layer     string
	hasCode, hasDoc bool
}

func (c *checker) report(where, format string, args ...any) {
	c.found = append(c.found, Violation{where, fmt.Sprintf(format, args...)})
}

func (c *checker) file(fsys fs.FS, name string) error {
	source, err := fs.ReadFile(fsys, name)
	if err != nil {
		return err
	}
	parsed, err := parser.ParseFile(c.files, name, source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	p := c.packageAt(path.Dir(name))
	c.imports(name, p, parsed)
	if strings.HasSuffix(name, "_test.go") {
		return nil
	}
	p.name, p.hasCode, p.hasDoc = parsed.Name.Name, true, p.hasDoc || parsed.Doc != nil
	if !ast.IsGenerated(parsed) {
		c.lengths(name, parsed)
	}
	return nil
}

func (c *checker) packageAt(folder string) *pkg {
	p, ok := c.packages[folder]
	if !ok {
		p = &pkg{layer: c.layerOf(folder)}
		c.packages[folder] = p
	}
	return p
}

// layerOf returns the row that covers folder, "" when there is none.
func (c *checker) layerOf(folder string) string {
	best := ""
	for _, l := range c.rules.Layers {
		if covers(l.Folder, folder) && len(l.Folder) > len(best) {
			best = l.Folder
		}
	}
	return best
}

func covers(row, folder string) bool {
	return folder == row || strings.HasPrefix(folder, row+"/")
}

func (c *checker) imports(name string, p *pkg, parsed *ast.File) {
	for _, spec := range parsed.Imports {
		target, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue // the parser has taken it, so it cannot be
		}
		where := c.files.Position(spec.Pos()).String()
		if folder, ours := strings.CutPrefix(target, c.rules.Module+"/"); ours {
			c.ownImport(where, name, p, folder)
			continue
		}
		c.outsideImport(where, p, target)
	}
}

func (c *checker) ownImport(where, name string, p *pkg, folder string) {
	to := c.layerOf(folder)
	if to == "" || to == p.layer || p.layer == "" || c.allows(p.layer, to) || sharedInside(path.Dir(name), folder) {
		return
	}
	c.report(where, "%s must not import %s: the layer table has no such arrow", p.layer, folder)
}

func (c *checker) allows(from, to string) bool {
	i := slices.IndexFunc(c.rules.Layers, func(l Layer) bool { return l.Folder == from })
	allowed := c.rules.Layers[i].Imports
	return slices.Contains(allowed, to) || slices.Contains(allowed, Everything)
}

// sharedInside tells whether folder is an internal package of the top folder that importer is in.
func sharedInside(importer, folder string) bool {
	top, _, _ := strings.Cut(importer, "/")
	return strings.HasPrefix(folder, top+"/internal/")
}

func (c *checker) outsideImport(where string, p *pkg, target string) {
	for module, allowed := range c.rules.Keepers {
		if covers(module, target) && !slices.Contains(allowed, p.layer) {
			c.report(where, "%s must not import %s: only %s may", p.layer, target, strings.Join(allowed, ", "))
		}
	}
}

func (c *checker) lengths(name string, parsed *ast.File) {
	lines := c.files.Position(parsed.FileEnd).Line
	limit := c.rules.MaxFileLines
	if covers(c.rules.MainsUnder, name) && path.Base(name) == "main.go" {
		limit = c.rules.MaxMainLines
	}
	if lines > limit {
		c.report(name, "%d lines, at most %d: split it by subject", lines, limit)
	}
	for _, decl := range parsed.Decls {
		f, ok := decl.(*ast.FuncDecl)
		if !ok {
			continue
		}
		from, to := c.files.Position(f.Pos()), c.files.Position(f.End())
		if n := to.Line - from.Line + 1; n > c.rules.MaxFuncLines {
			c.report(from.String(), "function %s has %d lines, at most %d", f.Name.Name, n, c.rules.MaxFuncLines)
		}
	}
}

// folders checks what is known only when all files of a package were read.
func (c *checker) folders() {
	names := make([]string, 0, len(c.packages))
	for folder := range c.packages {
		names = append(names, folder)
	}
	slices.Sort(names)
	for _, folder := range names {
		p := c.packages[folder]
		if p.layer == "" && !strings.Contains(folder, "/internal/") {
			c.report(folder, "not in the layer table: give it a row that says what it may import")
		}
		if p.hasCode && !p.hasDoc {
			c.report(folder, "no package comment: say in doc.go what the package is for and what its caller owes")
		}
		if slices.Contains(c.rules.BannedNames, p.name) || slices.Contains(c.rules.BannedNames, path.Base(folder)) {
			c.report(folder, "a package name that does not tell its subject")
		}
	}
}

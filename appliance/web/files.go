package web

import (
	"crypto/sha256"
	"embed"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"strings"
)

//go:embed assets
var assets embed.FS

// kinds are the files that there may be.
var kinds = map[string]string{
	".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
	".svg": "image/svg+xml", ".json": "application/manifest+json",
}

type file struct {
	kind, tag string
	data      []byte
}

// files are the console's own, by path.
type files map[string]file

func loadFiles() (files, error) {
	out := files{}
	err := fs.WalkDir(assets, "assets", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := assets.ReadFile(name)
		if err != nil {
			return err
		}
		kind, ok := kinds[path.Ext(name)]
		if !ok {
			return fmt.Errorf("web: %s is of no known kind", name)
		}
		out[strings.TrimPrefix(name, "assets")] = file{kind, fmt.Sprintf(`"%x"`, sha256.Sum256(data)), data}
		return nil
	})
	out["/"] = out["/index.html"]
	return out, err
}

// ServeHTTP implements http.Handler. Browsers ask each time whether a file is another one now.
func (f files) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	one, ok := f[r.URL.Path]
	switch {
	case changes(r.Method):
		http.Error(w, "405 files are only read", http.StatusMethodNotAllowed)
		return
	case !ok:
		http.Error(w, "404 there is no such page", http.StatusNotFound)
		return
	}
	h := w.Header()
	h.Set("Content-Type", one.kind)
	h.Set("Cache-Control", "no-cache")
	h.Set("ETag", one.tag)
	if r.Header.Get("If-None-Match") == one.tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Length", fmt.Sprint(len(one.data)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(one.data)
	}
}

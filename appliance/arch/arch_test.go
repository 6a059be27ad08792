package arch

import (
	"os"
	"slices"
	"testing"
)

// TestRepository holds this repository to the table of its design.
func TestRepository(t *testing.T) {
	found, err := Check(os.DirFS("../.."), Lunar())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range found {
		t.Error(v)
	}
}

// TestTableIsAcyclic proves that arrows can only point down: no row reaches itself.
func TestTableIsAcyclic(t *testing.T) {
	imports := map[string][]string{}
	for _, l := range Lunar().Layers {
		imports[l.Folder] = l.Imports
	}
	var walk func(folder string, above []string)
	walk = func(folder string, above []string) {
		if slices.Contains(above, folder) {
			t.Fatalf("cycle: %v → %s", above, folder)
		}
		for _, to := range imports[folder] {
			if _, known := imports[to]; !known && to != Everything {
				t.Fatalf("%s may import %s, which has no row", folder, to)
			}
			walk(to, append(above, folder))
		}
	}
	for folder := range imports {
		walk(folder, nil)
	}
}

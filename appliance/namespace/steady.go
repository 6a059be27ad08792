package namespace

import "context"

// steady is a tree whose calls end by themselves only, each within the volume's own limits. The kernel says of
// every signal that a program gets that its call is to be interrupted, and a change of a name that is given up
// half-way has an end that nobody knows.
type steady struct{ tree Tree }

// Volumes implements Tree.
func (s steady) Volumes() []Volume { return s.tree.Volumes() }

// List implements Tree.
func (s steady) List(ctx context.Context, volume string) ([]File, error) {
	return s.tree.List(context.WithoutCancel(ctx), volume)
}

// Stat implements Tree.
func (s steady) Stat(ctx context.Context, volume, path string) (File, error) {
	return s.tree.Stat(context.WithoutCancel(ctx), volume, path)
}

// Space implements Tree.
func (s steady) Space(ctx context.Context, volume string) (Space, error) {
	return s.tree.Space(context.WithoutCancel(ctx), volume)
}

// Create implements Tree.
func (s steady) Create(ctx context.Context, volume, path string) error {
	return s.tree.Create(context.WithoutCancel(ctx), volume, path)
}

// Rename implements Tree.
func (s steady) Rename(ctx context.Context, volume, from, to string) error {
	return s.tree.Rename(context.WithoutCancel(ctx), volume, from, to)
}

// Delete implements Tree.
func (s steady) Delete(ctx context.Context, volume, path string) error {
	return s.tree.Delete(context.WithoutCancel(ctx), volume, path)
}

// Resize implements Tree.
func (s steady) Resize(ctx context.Context, volume, path string, size int64) error {
	return s.tree.Resize(context.WithoutCancel(ctx), volume, path, size)
}

// Open implements Tree.
func (s steady) Open(ctx context.Context, volume, path string) (Image, error) {
	return s.tree.Open(context.WithoutCancel(ctx), volume, path)
}

package lab

import (
	"context"
	"fmt"
	"os"
)

// Programs is the folder of lunard and lunarctl: LUNAR_BIN, or a new one into which they are built. The caller ends
// with done.
func Programs(ctx context.Context) (dir string, done func(), err error) {
	if dir := os.Getenv("LUNAR_BIN"); dir != "" {
		return dir, func() {}, nil
	}
	if dir, err = os.MkdirTemp("", "lunar-bin"); err != nil {
		return "", nil, fmt.Errorf("build lunard and lunarctl: %w", err)
	}
	done = func() { _ = os.RemoveAll(dir) }
	if _, err := Run(ctx, "go", "build", "-o", dir+"/", "lunar/appliance/cmd/..."); err != nil {
		done()
		return "", nil, fmt.Errorf("build lunard and lunarctl: %w", err)
	}
	return dir, done, nil
}

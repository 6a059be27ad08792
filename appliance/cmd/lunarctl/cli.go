package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"lunar/appliance/api"
)

// cli is one run of lunarctl.
type cli struct {
	in       io.Reader
	out, err io.Writer

	socket string
	json   bool
	client *api.Client
	parsed bool // the arguments were right: a later error is no usage error
}

// usageError is wrong usage that only the command itself can see.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// run executes the arguments and returns the exit code.
func (c *cli) run(ctx context.Context, args []string) int {
	root := c.root() //nolint:contextcheck // the verbs take the context from cobra
	root.SetArgs(args)
	root.SetIn(c.in)
	root.SetOut(c.out)
	root.SetErr(c.err)
	cmd, err := root.ExecuteContextC(ctx)
	if c.client != nil {
		c.client.Close()
	}
	return c.report(cmd, err)
}

func (c *cli) report(cmd *cobra.Command, err error) int {
	var usage *usageError
	var refusal *api.Error
	switch {
	case err == nil:
		return api.ExitOK
	case !c.parsed || errors.As(err, &usage):
		_, _ = fmt.Fprintf(c.err, "lunarctl: %v\nSee '%s --help'.\n", err, cmd.CommandPath())
		return api.ExitUsage
	case errors.Is(err, context.Canceled):
		_, _ = fmt.Fprintln(c.err, "lunarctl: interrupted")
		return api.ExitFailed
	case c.json && errors.As(err, &refusal):
		_ = json.NewEncoder(c.err).Encode(refusal)
	case errors.As(err, &refusal) && refusal.Hint != "":
		_, _ = fmt.Fprintf(c.err, "lunarctl: %s\n  %s\n", refusal.Message, refusal.Hint)
	default:
		_, _ = fmt.Fprintf(c.err, "lunarctl: %v\n", err)
	}
	return api.ExitCode(err)
}

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "lunarctl NOUN VERB",
		Short:         "Manage a Lunar storage node",
		Long:          "Manage a Lunar storage node through the unix socket of its lunard.",
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          needVerb,
	}
	socket := os.Getenv("LUNAR_SOCKET")
	if socket == "" {
		socket = api.DefaultSocket
	}
	root.PersistentFlags().StringVar(&c.socket, "socket", socket, "unix socket of the node, also LUNAR_SOCKET")
	root.PersistentFlags().BoolVar(&c.json, "json", false, "print JSON")
	root.AddCommand(c.clusterCommand(), c.nodeCommand(), c.networkCommand(), c.volumeCommand(), c.imageCommand(), c.snapshotCommand(), c.backupCommand(), c.targetCommand(), c.sessionCommand(), c.traceCommand(), c.systemCommand(), c.webCommand(), c.topCommand(), c.logCommand(), c.versionCommand())
	return root
}

// noun makes a command that only groups verbs.
func noun(name, short string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short, RunE: needVerb, Args: cobra.ArbitraryArgs}
	cmd.AddCommand(verbs...)
	return cmd
}

func needVerb(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%s knows no %q", cmd.CommandPath(), args[0])
	}
	cmd.SetOut(cmd.ErrOrStderr())
	_ = cmd.Help()
	return usagef("a command is missing")
}

// verb makes a command that takes exactly as many arguments as use names in capitals.
func (c *cli) verb(use, short string, args int, run func(ctx context.Context, args []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.ExactArgs(args), DisableFlagsInUseLine: true, RunE: c.runs(run)}
}

// runs notes that cobra found nothing wrong with the arguments, and connects.
func (c *cli) runs(run func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c.parsed = true
		c.client = api.NewClient(c.socket)
		return run(cmd.Context(), args)
	}
}

// onOff reads the last argument of verbs that switch something.
func onOff(s string) (bool, error) {
	switch s {
	case "on":
		return true, nil
	case "off":
		return false, nil
	}
	return false, usagef("%q is neither on nor off", s)
}

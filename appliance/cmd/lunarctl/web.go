package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"lunar/appliance/api"
)

func (c *cli) webCommand() *cobra.Command {
	passwd := c.verb("passwd NAME", "Give a user another password, which comes on standard input", 1, c.webPasswd)
	remove := c.verb("remove NAME", "Remove a user and end their sessions", 1, func(ctx context.Context, args []string) error {
		return firstError(c.client.RemoveWebUser(ctx, args[0]), func() error { return c.done("%s is removed", args[0]) })
	})
	for _, cmd := range []*cobra.Command{passwd, remove} {
		cmd.ValidArgsFunction = c.complete(c.webUserNames)
	}
	user := noun("user", "Who may sign in at the web console, on all nodes", c.webAdd(), passwd, remove,
		c.verb("list", "List the users", 0, c.webUsers))
	return noun("web", "The console for browsers; web.address in the configuration turns it on",
		c.verb("status", "Tell where the node's console listens, and its certificate", 0, c.webStatus), user)
}

func (c *cli) webAdd() *cobra.Command {
	var r api.AddWebUser
	cmd := c.verb("add NAME [--role admin|read-only]", "Let one more sign in; the password comes on standard input", 1,
		func(ctx context.Context, args []string) (err error) {
			if r.Role != api.WebAdmin && r.Role != api.WebReadOnly {
				return usagef("--role is %s or %s", api.WebAdmin, api.WebReadOnly)
			}
			r.Name = args[0]
			if r.Password, err = c.readSecret(fmt.Sprintf("Password for %s: ", r.Name)); err != nil {
				return err
			}
			u, err := c.client.AddWebUser(ctx, r)
			if err != nil {
				return err
			}
			return c.printOne(u, "%s may sign in, %s", u.Name, u.Role)
		})
	cmd.Flags().StringVar(&r.Role, "role", api.WebReadOnly, "admin: sees and changes; read-only: sees")
	return cmd
}

func (c *cli) webPasswd(ctx context.Context, args []string) error {
	password, err := c.readSecret(fmt.Sprintf("Password for %s: ", args[0]))
	if err != nil {
		return err
	}
	return firstError(c.client.SetWebPassword(ctx, args[0], password), func() error {
		return c.done("%s has another password; who is signed in by the old one has to sign in anew", args[0])
	})
}

func (c *cli) webUsers(ctx context.Context, _ []string) error {
	users, err := c.client.WebUsers(ctx)
	if err != nil {
		return err
	}
	return printList(c, users, "NAME ROLE CHANGED", func(u *api.WebUser) []string { return []string{u.Name, u.Role, when(u.Changed)} })
}

func (c *cli) webUserNames(ctx context.Context) ([]string, error) {
	return named(c.client.WebUsers(ctx))(func(u *api.WebUser) string { return u.Name })
}

func (c *cli) webStatus(ctx context.Context, _ []string) error {
	w, err := c.client.Web(ctx)
	if err != nil || c.json {
		return firstError(err, func() error { return c.printJSON(w) })
	}
	if w.Address == "" {
		return c.fields("Node", w.Node, "Console", "off: "+w.Reason)
	}
	scheme, cert := "http://", api.WebCertificate{}
	if w.TLS {
		scheme = "https://"
	}
	if w.Certificate != nil {
		cert = *w.Certificate
	}
	return c.fields("Node", w.Node, "Console", scheme+w.Address, "Signed in", strconv.Itoa(w.Sessions),
		"Certificate", cert.Subject, "Issued by", cert.Issuer, "Good for", strings.Join(cert.Names, ", "), "Until", when(cert.NotAfter), "SHA-256", cert.SHA256)
}

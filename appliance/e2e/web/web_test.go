package web

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/e2e/cluster/load"
	"lunar/appliance/e2e/lab"
	"lunar/appliance/e2e/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

const (
	testLimit = 10 * time.Minute
	mib       = int64(1) << 20
	password  = "correct horse battery"
	port      = "9443"
)

// pages are all of the console's, with what each shows when it is there.
var pages = []struct{ path, shows string }{
	{"map", "Paths between nodes"}, {"volumes", "Backups under way"}, {"images", "images"}, {"targets", "New target"},
	{"live", "Busiest initiators"}, {"events", "events, following"},
}

// bench is a cluster at work, and a browser.
type bench struct {
	*lab.Cluster
	t   *testing.T
	ctx context.Context //nolint:containedctx // of the test, whose helpers all need it
	*browser
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if os.Getenv("LUNAR_LONG") == "" {
		t.Skip("`make web-test` runs it")
	}
	ctx, l := labtest.Open(t, testLimit, "chromium", "qemu-io", "mkfs.xfs", "ip")
	c, err := l.Cluster(ctx, lab.ClusterConfig{Second: true, Lease: "6s", Extra: fmt.Sprintf("\n[web]\naddress = \"0.0.0.0:%s\"\n", port)})
	check(t, err)
	b := &bench{Cluster: c, t: t, ctx: ctx}
	check(t, c.Serve(ctx, 256*mib))
	for _, name := range []string{"web", "mail", "db-01", "db-02", "build/agent-1", "build/agent-2", "archive"} {
		_, err := c.Nodes[0].API.CreateImage(ctx, api.CreateImage{Image: lab.ClusterVolume + "/" + name + ".img", Size: int64(len(name)) << 30})
		check(t, err)
	}
	for user, role := range map[string]string{"ada": api.WebAdmin, "bob": api.WebReadOnly} {
		_, err := c.Nodes[0].CtlInput(ctx, password+"\n", "web", "user", "add", user, "--role", role)
		check(t, err)
	}
	check(t, c.Move(ctx, c.Nodes[0]))
	fleet, err := load.StartFleet(ctx, c)
	check(t, err)
	t.Cleanup(fleet.Abandon)
	b.browser = startBrowser(t)
	return b
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (b *bench) console(n *lab.ClusterNode) string {
	return "https://" + net.JoinHostPort(n.Address, port)
}

func (b *bench) signIn(n *lab.ClusterNode, user string) *tab {
	b.t.Helper()
	p := b.open(b.console(n))
	p.enter("user", user)
	p.enter("password", password)
	p.press("Enter")
	p.see("the console", "document.querySelector('nav')")
	return p
}

// album takes a picture of each page, on both screens.
func (b *bench) album(p *tab, phase string) {
	b.t.Helper()
	for _, s := range []size{desktop, phone} {
		p.screen(s, map[bool]string{false: "light", true: "dark"}[s.phone])
		for _, page := range pages {
			p.to(page.path)
			p.see(page.path, has(page.shows))
			p.see("its content", "!document.querySelector('main').innerText.includes('Reading …')")
			p.fits(page.path + " on the " + s.name)
			p.shoot(strings.Join([]string{page.path, phase, s.name}, "-"))
		}
	}
	p.screen(desktop, "light")
}

func (p *tab) to(path string) {
	p.t.Helper()
	check(p.t, p.eval(fmt.Sprintf("location.hash = '#/%s'", path), nil))
}

// TestConsole signs in, manages images and volumes, and looks on while a coordinator dies.
func TestConsole(t *testing.T) {
	b := newBench(t)
	first, second := b.Nodes[0], b.Nodes[1]
	p := b.open(b.console(second))
	p.enter("user", "ada")
	p.enter("password", "wrong wrong wrong")
	p.press("Enter")
	p.see("the refusal", has("The name or the password is wrong"))
	p.shoot("signin-desktop")
	p.enter("password", password)
	p.press("Enter")
	p.see("the map", has("Paths between nodes"))

	b.manage(p, second)
	b.keyboard(p)
	b.many(p)

	p.to("live")
	p.see("I/O in the charts", "[...document.querySelectorAll('.legend b')].some((b) => parseFloat(b.innerText) > 0)")
	p.see("some time of it", "document.querySelector('.line').getAttribute('d').split('L').length > 8")
	b.album(p, "before")
	lost := b.signIn(first, "bob")
	lost.see("no change for who may look", "!document.querySelector('[data-key=validate]')")
	lost.to("images")
	lost.see("images", has("web.img"))
	lost.see("no new image for who may look", "!document.querySelector('[data-key=new]')")

	first.Kill()
	p.front()
	p.to("map")
	p.see("that a node is down", has("Down"))
	b.album(p, "during")
	lost.front()
	lost.see("that the connection is lost", has("No connection to n1 since"))
	lost.shoot("lost-desktop")
	lost.screen(phone, "dark")
	lost.fits("the banner")
	lost.shoot("lost-phone")
	lost.screen(desktop, "light")

	check(t, first.Restart(b.ctx))
	lost.see("that the session has ended with its node", has("The session has ended"))
	p.front()
	p.to("map")
	p.see("all nodes", has("3 nodes up"))
	check(t, first.AwaitState(b.ctx, api.Direct, seeLimit))
	p.see("no node that is down", "!"+has("Down"))
	b.album(p, "after")
	p.sound()
	lost.sound()
	p.click(button("Sign out"))
	p.see("the door", has("Storage console"))
}

// manage creates an image, takes a snapshot of it, clones it, and moves the volume.
func (b *bench) manage(p *tab, at *lab.ClusterNode) {
	b.t.Helper()
	p.to("images")
	p.click(button("New image …"))
	p.enter("path", "by-hand.img")
	p.shoot("create-desktop")
	p.screen(phone, "dark")
	p.shoot("create-phone")
	p.screen(desktop, "light")
	p.click(button("Create"))
	p.see("the new image", has("Volume1/by-hand.img is created"))
	image, err := at.API.Image(b.ctx, "Volume1/by-hand.img")
	check(b.t, err)
	if image.Size != 1<<30 {
		b.t.Errorf("the image has %d bytes", image.Size)
	}
	p.click("[...document.querySelectorAll('.row')].find((r) => r.innerText.includes('by-hand.img'))")
	p.click(button("Snapshot …"))
	p.enter("name", "monday")
	p.click(button("Take"))
	p.see("the snapshot", "[...document.querySelectorAll('dialog td')].some((d) => d.innerText.includes('monday'))")
	snapshots, err := at.API.Snapshots(b.ctx, "Volume1")
	check(b.t, err)
	if len(snapshots) != 1 || snapshots[0].FullName() != "Volume1/by-hand.img@monday" {
		b.t.Errorf("snapshots %+v", snapshots)
	}
	p.click(button("Clone …"))
	p.click(button("Clone"))
	p.see("the clone", has("Volume1/by-hand-copy.img is a clone"))
	p.shoot("image-desktop")
	p.screen(phone, "dark")
	p.fits("an image's dialog")
	p.shoot("image-phone")
	p.screen(desktop, "light")
	p.click(button("Clone …"))
	p.click(button("Clone"))
	p.see("the refusal of a second one", "document.querySelector('dialog .problem')")
	p.press("Escape", "Escape")

	p.to("volumes")
	p.click(button("Move …"))
	p.see("where it can go", has("n3 (Up)"))
	check(b.t, p.eval("document.querySelector('[name=to]').value = 'n3'", nil))
	p.click(button("Move"))
	p.see("the move", has("is coordinated by n3 now"))
	now, err := b.Coordinator(b.ctx)
	check(b.t, err)
	if now != b.Nodes[2] {
		b.t.Errorf("%s coordinates", now.Name)
	}
	check(b.t, b.Move(b.ctx, b.Nodes[0]))
}

// keyboard goes round without a mouse; the focus stays in a dialog and comes back.
func (b *bench) keyboard(p *tab) {
	b.t.Helper()
	p.press("g", "i")
	p.see("images by keys", "location.hash === '#/images' && document.querySelector('.row')")
	p.press("/")
	p.see("the search's focus", "document.activeElement.type === 'search'")
	p.do("Input.insertText", map[string]any{"text": "agent"})
	p.see("the images that match", has("2 of 10 images"))
	check(b.t, p.eval("document.querySelector('.list').focus()", nil))
	p.press("ArrowDown", "Enter")
	p.see("the dialog", "document.querySelector('dialog[open]')")
	for range 40 {
		p.press("Tab")
		var inside bool
		check(b.t, p.eval("document.activeElement === document.body || !!document.activeElement.closest('dialog')", &inside))
		if !inside {
			b.t.Fatal("the focus left the dialog")
		}
	}
	p.press("Escape")
	p.see("the focus where it was", "!document.querySelector('dialog') && document.activeElement.classList.contains('list')")
	p.press("?")
	p.see("the shortcuts", has("Keyboard shortcuts"))
	p.press("Escape")
}

// many shows 10,000 images, of which only what is seen is in the document. The list stands in for a SAN that is too large
// for this machine.
func (b *bench) many(p *tab) {
	b.t.Helper()
	all := make([]api.Image, 10_000)
	for i := range all {
		all[i] = api.Image{Volume: "Volume1", Path: fmt.Sprintf("guest-%05d.img", i), Size: 1 << 34, Allocated: int64(i) << 20,
			Mapped: []api.Mapping{{Target: fmt.Sprintf("iqn.2026-01.example:rack-%d", i/256), LUN: uint16(i % 256)}}}
	}
	text, err := json.Marshal(all)
	check(b.t, err)
	p.images = text
	p.do("Fetch.enable", map[string]any{"patterns": []map[string]string{{"urlPattern": "*/api/v1/images"}}})
	p.to("map")
	begun := time.Now()
	p.to("images")
	p.see("10,000 images", has("10000 images"))
	shown := time.Since(begun)
	var rows int
	check(b.t, p.eval("document.querySelectorAll('.row').length", &rows))
	if rows < 5 || rows > 60 {
		b.t.Errorf("%d rows are in the document", rows)
	}
	check(b.t, p.eval("document.querySelector('.list').focus()", nil))
	p.press("End")
	p.see("the last one", has("guest-09999.img"))
	p.press("/")
	var took float64
	check(b.t, p.eval(`(() => { const s = document.querySelector('input[type=search]'); const t = performance.now(); s.value = 'rack-7 0179'; s.dispatchEvent(new Event('input')); return performance.now() - t; })()`, &took))
	p.see("those that match", has("8 of 10000 images"))
	b.t.Logf("10,000 images: shown within %v, %d rows in the document, searched in %.1f ms", shown.Round(time.Millisecond), rows, took)
	p.shoot("many-desktop")
	p.do("Fetch.disable", map[string]any{})
	p.to("map")
}

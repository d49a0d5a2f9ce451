package doctor

import (
	"fmt"
	"slices"
	"strings"
)

// controllers that limit a sandbox.
var controllers = []string{"cpu", "memory", "pids"}

func cgroups(h Host) Finding {
	const base = "/sys/fs/cgroup"
	if have, err := h.ReadFile(base + "/cgroup.controllers"); err == nil {
		if missing := without(controllers, strings.Fields(have)); len(missing) > 0 {
			return Finding{"cgroup", Fail, "cgroup v2 lacks the controllers " + strings.Join(missing, ", "), "boot with them (cgroup_enable=memory on some boards), or delegate them to this container"}
		}
		if !h.Writable(base) {
			return Finding{"cgroup", Fail, base + " is read-only", "in a container, use the host's cgroup namespace and mount it writable"}
		}
		return ok("cgroup", "v2 with %s", strings.Join(controllers, ", "))
	}
	var missing []string
	for _, c := range controllers {
		if !h.Writable(base + "/" + c) {
			missing = append(missing, c)
		}
	}
	if len(missing) == len(controllers) {
		return Finding{"cgroup", Fail, "no cgroup is mounted writable below " + base, "mount cgroup2 there: mount -t cgroup2 none " + base}
	}
	if len(missing) > 0 {
		return Finding{"cgroup", Fail, "cgroup v1 has no writable controllers " + strings.Join(missing, ", "), "mount them below " + base + ", or boot with cgroup v2"}
	}
	return ok("cgroup", "v1 with %s", strings.Join(controllers, ", "))
}

func without(want, have []string) []string {
	return slices.DeleteFunc(slices.Clone(want), func(s string) bool { return slices.Contains(have, s) })
}

func runsc(h Host, w Want) Finding {
	if !h.Exists(w.Runsc) {
		return Finding{"runsc", Fail, "gVisor's program is not at " + w.Runsc, "build it with `make build`, or name it with --runsc"}
	}
	said, err := h.Version(w.Runsc)
	if err != nil {
		return Finding{"runsc", Fail, fmt.Sprintf("%s does not run (%v)", w.Runsc, err), "build it again with `make build`"}
	}
	version, _, _ := strings.Cut(said, "\n")
	version = strings.TrimPrefix(version, "runsc version ")
	if w.RunscVersion != "" && version != w.RunscVersion {
		return Finding{"runsc", Fail, fmt.Sprintf("%s is version %s, and this program drives %s", w.Runsc, version, w.RunscVersion), "build both together with `make build`"}
	}
	return ok("runsc", "%s", version)
}

func programs(h Host, w Want) Finding {
	for _, p := range w.Programs {
		if !h.Exists(p) {
			return Finding{"guest programs", Fail, p + " is missing", "build it with `make build`"}
		}
	}
	return ok("guest programs", "%d of %d", len(w.Programs), len(w.Programs))
}

func netlinkWorks(h Host) Finding {
	if err := h.Links(); err != nil {
		return Finding{"netlink", Fail, fmt.Sprintf("the network devices can't be read (%v)", err), "in a container, add the capability NET_ADMIN"}
	}
	return ok("netlink", "works")
}

// ownTable starts the names of this platform's tables.
const ownTable = "sirocco"

// firewall looks for packet filters of others. A packet that they drop is
// dropped, whatever the platform's own rules say.
func firewall(h Host) []Finding {
	chains, err := h.Chains()
	if err != nil {
		return []Finding{{"nftables", Fail, fmt.Sprintf("the packet filter can't be read (%v)", err), "load the module nf_tables (modprobe nf_tables), and in a container add NET_ADMIN"}}
	}
	findings := []Finding{ok("nftables", "works")}
	for _, c := range chains {
		if c.Forward && c.Drop && !strings.HasPrefix(c.Table, ownTable) {
			findings = append(findings, Finding{
				"firewall", Warn, fmt.Sprintf("the chain %s of the table %s drops forwarded packets by default", c.Name, c.Table),
				"if sandboxes can't reach the Internet, allow what comes from their devices there (Docker: in the chain DOCKER-USER)",
			})
		}
	}
	return findings
}

func forwarding(h Host) Finding {
	const path = "/proc/sys/net/ipv4/ip_forward"
	now, err := h.ReadFile(path)
	if err == nil && strings.TrimSpace(now) == "1" {
		return ok("forwarding", "on")
	}
	if !h.Writable(path) {
		return Finding{"forwarding", Warn, "IPv4 forwarding is off and can't be switched on from here, so sandboxes reach nothing", "sysctl -w net.ipv4.ip_forward=1 on the machine"}
	}
	return ok("forwarding", "off; the node-agent switches it on")
}

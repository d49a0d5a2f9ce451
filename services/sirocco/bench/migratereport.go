package bench

import "slices"

// report writes down what was found. floors are those of the kinds; nil for none.
func (m *migrateRun) report(floors []float64) {
	m.pauses(floors)
	m.Time("whole moves, from the call to its answer", m.took.All(), 0)
	m.phaseTimes()
	m.requests()
	m.Figure("moves", float64(m.made.Load()), "", 0)
	if took := m.took.All(); len(took) > 0 {
		last := took[len(took)-1]
		m.Figure("  a minute", float64(len(took))/(last.At+last.Took).Minutes(), "", 0)
	}
	m.Note("pause: from when nothing in the sandbox ran any more until it ran again where it went")
	m.Note("short stop before: larger sandboxes are checkpointed once before, go on, and have their memory sent ahead")
	m.Note("floor: pause, checkpoint, restore and resume of the same kind of sandbox by this process alone, median of %d: no transfer, record or relay", m.cfg.FloorRuns)
	m.Note("each request is a POST that nobody makes again; it must be answered with 200, by the same process, which counts it once. Each command must print what it prints, and of an output that is followed nothing may be missing or come twice")
}

// pauses are told for each kind, with what was sent for it.
func (m *migrateRun) pauses(floors []float64) {
	var names []string
	var plots [][]Sample
	var all []Sample
	for k, kind := range m.kinds {
		var samples []Sample
		var bytes int64
		for _, one := range m.all {
			if one.kind != k {
				continue
			}
			for _, move := range one.moves {
				samples = append(samples, Sample{move.from, move.pause})
				bytes += move.bytes
			}
		}
		if len(samples) == 0 {
			continue
		}
		floor := 0.0
		if floors != nil {
			floor = floors[k]
		}
		m.Time("pause, "+kind.name, samples, floor)
		m.Figure("sent for a move, "+kind.name, float64(bytes)/float64(len(samples))/(1<<20), "MiB", 0)
		names, plots, all = append(names, kind.name), append(plots, samples), append(all, samples...)
	}
	m.Time("pause, all", all, 0)
	p := DistributionPlot("For how long a sandbox that moves is paused", names, plots...)
	p.Name = "pause"
	m.Plots = append(m.Plots, p)
}

// phaseTimes are told for the sandboxes of each kind, from the log.
func (m *migrateRun) phaseTimes() {
	all, err := readPhases(m.regions.Log, m.start)
	if err != nil {
		m.Note("the parts of the pauses are not known: %v", err)
		return
	}
	for k, kind := range m.kinds {
		var ahead, save, transfer, restore []Sample
		for _, p := range all {
			if slices.ContainsFunc(m.all, func(one *migrant) bool { return one.kind == k && one.sandbox.ID == p.Sandbox }) {
				if p.Ahead > 0 {
					ahead = append(ahead, Sample{Took: p.Ahead})
				}
				save, transfer, restore = append(save, Sample{Took: p.Save}), append(transfer, Sample{Took: p.Transfer}), append(restore, Sample{Took: p.Restore})
			}
		}
		if len(ahead) > 0 {
			m.Time("  short stop before, "+kind.name, ahead, 0)
		}
		if len(save) > 0 {
			m.Time("  save, "+kind.name, save, 0)
			m.Time("  transfer, "+kind.name, transfer, 0)
			m.Time("  restore, "+kind.name, restore, 0)
		}
	}
}

// requests are told apart by whether their sandbox was on the move.
func (m *migrateRun) requests() {
	var held, free, all []Sample
	var marks []float64
	slowest := 0
	for i, one := range m.all {
		samples := one.requests.All()
		for _, s := range samples {
			if slices.ContainsFunc(one.moves, func(move moved) bool { return s.At < move.to && s.At+s.Took > move.from }) {
				held = append(held, s)
			} else {
				free = append(free, s)
			}
		}
		all = append(all, samples...)
		for _, move := range one.moves {
			marks = append(marks, move.from.Seconds())
		}
		if m.kinds[one.kind].mb > m.kinds[m.all[slowest].kind].mb {
			slowest = i
		}
	}
	if len(all) == 0 {
		return
	}
	slices.SortFunc(all, func(a, b Sample) int { return int(a.At - b.At) })
	m.Time("a request while its sandbox moved", held, 0)
	m.Time("a request otherwise", free, 0)
	m.Figure("requests", float64(len(all)), "", 0)
	m.Figure("  the slowest", Distribute(all).Max, "ms", 0)
	p := LatencyPlot("Requests through the tunnels", all)
	p.Marks, p.Mark = marks, "a move began"
	m.Plots = append(m.Plots, p)
	one := m.all[slowest]
	p = LatencyPlot("Requests to one sandbox of "+m.kinds[one.kind].name, one.requests.All())
	p.Name, p.Mark = "one", "it began to move"
	for _, move := range one.moves {
		p.Marks = append(p.Marks, move.from.Seconds())
	}
	m.Plots = append(m.Plots, p)
}

// Package weight decides how much of the traffic each region gets: pure
// functions from what was seen, and when, to scores, weights and a choice. It
// knows no bus, no clock and no disk; its callers bring the signals and the time,
// and keep the state.
//
//	reports ──▶ Track ──▶ Signals ──Judge──▶ Health ──Step──▶ Decision ──Pick──▶ region of a request
//	            (memory)                     (0..1, why)      (weight, why)
//
// What holds of every step ([Config.Step]), whatever the input:
//   - Weights are never negative. They sum to 1, or are all zero when every
//     region is dead or closed by a person.
//   - They are in proportion to capacity × level, where the level, from 0 to 1, is
//     what the region's health lets it have.
//   - A region known dead is at zero at once.
//   - No region gains share faster than it can start sandboxes, except for what a
//     death, a loss of capacity or a person takes from the others at once.
//   - At least half of the capacity that is alive stays in, as long as no person
//     takes it out.
//   - The same state, input and time give the same decisions and the same state,
//     in whatever order the regions come, and after a round trip of the state
//     through JSON.
//   - The clock may jump: backwards it is as if no time had passed, forwards as
//     if [Config.MaxStep] had.
package weight

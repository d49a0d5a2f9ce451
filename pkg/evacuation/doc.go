// Package evacuation empties a region or a node by moves, in stages: what is ordered,
// when how many moves may begin, and where an order and its progress are kept.
//
// [Step] is pure: given an order with its progress, what has become of its moves and
// the time, it says what to do and what the progress is then. So any scheduler goes on
// where another stopped, and the same input gives the same answer. What always holds:
//
//   - Never has a larger share of the sandboxes begun to move than the stage allows, and
//     a stage begins only when every move of the ones before has ended, and went well.
//   - Where too many moves fail, or stop their sandboxes for too long, none begins until
//     the pause is over.
//   - Stages are never taken back, and the share of what is new that a region may have
//     never rises, unless the order is cancelled; then no move begins, and all of it is
//     given back.
package evacuation

//! Which query answers for which target: a host step between the kernels of the costs and of the losses.

use super::MaskTargets;
use crate::gpu::Recorder;
use crate::{Error, Result, Tensor};

/// The cheapest assignment of queries to the targets of each picture.
#[derive(Clone, Debug)]
pub struct Matching {
    /// `[2 + 2 A]` of `u32`: how many pairs there are, of A that there can be; the bits of 1 / M, with M
    /// the number of targets, at least 1; the mask of each pair, b · Q + q, in ascending order; the class of
    /// each pair.
    pub pairs: Tensor,
    /// `[B, Q]` of `u32`: the class that each query should have; K, "no object", where it has no target.
    pub goals: Tensor,
}

impl Matching {
    /// A, the most pairs that a batch can have.
    pub fn capacity(&self) -> usize {
        (self.pairs.shape().len() - 2) / 2
    }
}

/// Records the minimum-cost assignment of min(Q, T) pairs for each picture of T targets, by the shortest
/// augmenting paths of Jonker and Volgenant, as `scipy.optimize.linear_sum_assignment` does it.
///
/// `costs`: `[B, Q, K]`, of whose columns the first T count; from [`mask_costs`](super::mask_costs). Of the
/// replay of this recording, costs that are no finite numbers are an [`Error::Invalid`] that says where
/// they are: `layer` is what the message calls them.
pub fn match_masks(
    recorder: &mut Recorder,
    costs: &Tensor,
    targets: &MaskTargets,
    layer: &str,
) -> Matching {
    let [batch, queries, classes] = *costs.dims() else {
        panic!("match_masks: costs {:?}", costs.shape())
    };
    let capacity = batch * queries.min(classes);
    let pairs = recorder.empty([2 + 2 * capacity]);
    let goals = recorder.empty([batch, queries]);
    let layer = layer.to_owned();
    recorder.host("matching", &[costs, &targets.list], &[&pairs, &goals], move |reads, writes| {
        let [costs, lists] = reads else { unreachable!("recorded above") };
        let [pairs, goals] = writes else { unreachable!("recorded above") };
        goals.fill(classes as u32);
        let mut total = 0;
        for (image, (costs, list)) in
            costs.chunks(queries * classes).zip(lists.chunks(1 + classes)).enumerate()
        {
            let (count, present) = (list[0] as usize, &list[1..]);
            total += count;
            let costs: Vec<&[f32]> =
                (costs.chunks(classes)).map(|row| bytemuck::cast_slice(&row[..count])).collect();
            for (query, column) in assign(&costs, image, &layer)? {
                goals[image * queries + query] = present[column];
            }
        }
        pairs[1] = (1.0 / total.max(1) as f32).to_bits();
        for (mask, &class) in goals.iter().enumerate().filter(|(_, k)| **k < classes as u32) {
            let pair = pairs[0] as usize;
            pairs[2 + pair] = mask as u32;
            pairs[2 + capacity + pair] = class;
            pairs[0] += 1;
        }
        Ok(())
    });
    Matching { pairs, goals }
}

/// Pairs of row and column.
fn assign(costs: &[&[f32]], image: usize, layer: &str) -> Result<Vec<(usize, usize)>> {
    let columns = costs.first().map_or(0, |row| row.len());
    let invalid = |reason: String| {
        Error::invalid(format!("matching of {layer}, picture {image} of the batch"), reason)
    };
    for (row, costs) in costs.iter().enumerate() {
        if let Some(column) = costs.iter().position(|cost| !cost.is_finite()) {
            let reason = format!(
                "query {row} has a cost of {} for target {column}; lower optimizer.lr or set \
                 optimizer.clip_norm",
                costs[column]
            );
            return Err(invalid(reason));
        }
    }
    let flat: Vec<f64> = costs.iter().flat_map(|row| row.iter().map(|&c| f64::from(c))).collect();
    let (rows, columns) = lsap::solve(costs.len(), columns, &flat, false)
        .map_err(|error| invalid(error.to_string()))?;
    Ok(rows.into_iter().zip(columns).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Rng;

    /// The cheapest assignment by trying them all.
    fn cheapest(costs: &[Vec<f32>], rows: &mut Vec<usize>, column: usize) -> f64 {
        let columns = costs[0].len();
        if column == columns || rows.len() == costs.len() {
            return 0.0;
        }
        // More targets than queries: some get none.
        let skip = columns - column > costs.len() - rows.len();
        let mut best = if skip { cheapest(costs, rows, column + 1) } else { f64::INFINITY };
        for row in 0..costs.len() {
            if !rows.contains(&row) {
                rows.push(row);
                let rest = cheapest(costs, rows, column + 1);
                rows.pop();
                best = best.min(f64::from(costs[row][column]) + rest);
            }
        }
        best
    }

    #[test]
    fn no_assignment_is_cheaper() {
        let mut rng = Rng::new(3, 1);
        for (rows, columns) in [(1, 1), (5, 3), (3, 5), (4, 4), (6, 1), (1, 6), (3, 0)] {
            for _ in 0..20 {
                // Coarse, so that some are equal.
                let cost = |_| (rng.between(-3.0, 3.0) * 2.0).round() / 2.0;
                let flat: Vec<f32> = (0..rows * columns).map(cost).collect();
                let costs: Vec<Vec<f32>> =
                    (0..rows).map(|r| flat[r * columns..][..columns].to_vec()).collect();
                let slices: Vec<&[f32]> = costs.iter().map(Vec::as_slice).collect();
                let pairs = assign(&slices, 0, "a test").unwrap();
                assert_eq!(pairs.len(), rows.min(columns));
                for side in [|p: &(usize, usize)| p.0, |p: &(usize, usize)| p.1] {
                    let mut used: Vec<usize> = pairs.iter().map(side).collect();
                    used.sort_unstable();
                    used.dedup();
                    assert_eq!(used.len(), pairs.len());
                }
                let total: f64 = pairs.iter().map(|&(r, c)| f64::from(costs[r][c])).sum();
                let best = if columns == 0 { 0.0 } else { cheapest(&costs, &mut Vec::new(), 0) };
                assert_eq!(total, best, "{costs:?}");
            }
        }
    }

    #[test]
    fn a_cost_that_is_no_number_is_an_error_that_says_where() {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = assign(&[&[1.0, 2.0], &[0.0, wrong]], 3, "layer 2").unwrap_err();
            let text = error.to_string();
            assert!(
                text.starts_with("matching of layer 2, picture 3 of the batch: query 1"),
                "{text}"
            );
            assert!(text.contains("target 1"), "{text}");
        }
    }
}

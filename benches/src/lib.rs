//! Statistics that the benchmarks in `benches/` share.

/// Figures of one kind, one from each round.
#[derive(Clone, Debug, Default)]
pub struct Sample(Vec<f64>);

impl Sample {
    /// Adds the figure of the next round.
    pub fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    /// The quantile for this share, interpolated; NaN without figures.
    #[must_use]
    pub fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
        let position = share.clamp(0.0, 1.0) * last as f64;
        let below = position.floor() as usize;
        let above = sorted[(below + 1).min(last)];
        sorted[below] + (above - sorted[below]) * (position - position.floor())
    }

    /// The median, which a single outlier does not change.
    #[must_use]
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Half the distance between the quartiles as a share of the median: the noise.
    #[must_use]
    pub fn spread(&self) -> f64 {
        (self.quantile(0.75) - self.quantile(0.25)) / 2.0 / self.median()
    }

    /// The ratios to `peer` in each round. Both were measured within seconds, so that longer slowdowns of the machine
    /// cancel out.
    #[must_use]
    pub fn over(&self, peer: &Sample) -> Sample {
        Sample(self.0.iter().zip(&peer.0).map(|(own, peer)| own / peer).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_interpolated() {
        let sample = Sample(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!([0.0, 0.5, 1.0].map(|share| sample.quantile(share)), [1.0, 2.5, 4.0]);
        assert_eq!(Sample(vec![7.0]).quantile(0.75), 7.0);
        assert!(Sample::default().median().is_nan());
    }

    #[test]
    fn one_bad_round_moves_neither_median_nor_spread_much() {
        let sample = Sample(vec![10.0, 10.0, 11.0, 9.0, 1000.0]);
        assert_eq!(sample.median(), 10.0);
        assert_eq!(sample.spread(), 0.05);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let (own, peer) = (Sample(vec![2.0, 20.0]), Sample(vec![1.0, 10.0]));
        assert_eq!(own.over(&peer).0, [2.0, 2.0]);
    }
}

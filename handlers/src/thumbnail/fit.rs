//! How large a thumbnail becomes and which part of the picture it shows, pure.
//! In: the picture's size, the size asked for. Out: a part to cut out and the size to bring it to.

use serde::Deserialize;

/// How a picture is brought into the size asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Fit {
    /// All of it within the size, as it is shaped.
    #[default]
    Contain,
    /// The size filled; what is too wide or too high is cut off at both sides.
    Cover,
    /// The size filled by squeezing.
    Exact,
}

/// Width and height.
pub(super) type Size = (u32, u32);

/// What to do with a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// The part that is shown, from the middle.
    pub(super) part: Size,
    /// What it is brought to.
    pub(super) size: Size,
}

/// Both sides are wanted by `cover` and `exact`, either by `contain`. Nothing is enlarged unless
/// it is said so.
pub(super) fn plan(
    fit: Fit,
    picture: Size,
    wanted: (Option<u32>, Option<u32>),
    upscale: bool,
) -> Option<Plan> {
    let plan = match (fit, wanted) {
        (_, (None, None)) => return None,
        (Fit::Contain, (width, height)) => {
            Plan { part: picture, size: within(picture, width, height) }
        }
        (Fit::Cover, (Some(width), Some(height))) => {
            let size = (width, height);
            Plan { part: within(size, Some(picture.0), Some(picture.1)), size }
        }
        (Fit::Exact, (Some(width), Some(height))) => Plan { part: picture, size: (width, height) },
        (Fit::Cover | Fit::Exact, _) => return None,
    };
    let enlarges = plan.size.0 > plan.part.0 || plan.size.1 > plan.part.1;
    Some(match fit {
        _ if upscale || !enlarges => plan,
        // Shapes are kept: as large as it is.
        Fit::Contain | Fit::Cover => Plan { size: plan.part, ..plan },
        Fit::Exact => {
            let size = (plan.size.0.min(picture.0), plan.size.1.min(picture.1));
            Plan { size, ..plan }
        }
    })
}

/// The largest size of this shape within a width and a height.
fn within(shape: Size, width: Option<u32>, height: Option<u32>) -> Size {
    let [w, h] = [shape.0, shape.1].map(u64::from);
    let [most_w, most_h] = [width, height].map(|most| most.map_or(u64::from(u32::MAX), u64::from));
    let (fit_w, fit_h) = if w * most_h <= h * most_w {
        (divided(w * most_h, h), most_h)
    } else {
        (most_w, divided(h * most_w, w))
    };
    let side = |length: u64| u32::try_from(length.max(1)).unwrap_or(u32::MAX);
    (side(fit_w), side(fit_h))
}

/// Rounded to the nearest.
fn divided(length: u64, by: u64) -> u64 {
    (length + by / 2) / by.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_fit_does_what_it_says() {
        let cases = [
            // fit, picture, wanted, upscale, part, size
            (Fit::Contain, (4000, 3000), (Some(200), Some(200)), false, (4000, 3000), (200, 150)),
            (Fit::Contain, (3000, 4000), (Some(200), Some(200)), false, (3000, 4000), (150, 200)),
            (Fit::Contain, (4000, 3000), (Some(200), None), false, (4000, 3000), (200, 150)),
            (Fit::Contain, (4000, 3000), (None, Some(150)), false, (4000, 3000), (200, 150)),
            (Fit::Contain, (100, 50), (Some(200), Some(200)), false, (100, 50), (100, 50)),
            (Fit::Contain, (100, 50), (Some(200), Some(200)), true, (100, 50), (200, 100)),
            (Fit::Contain, (10_000, 1), (Some(100), Some(100)), false, (10_000, 1), (100, 1)),
            (Fit::Cover, (4000, 3000), (Some(200), Some(200)), false, (3000, 3000), (200, 200)),
            (Fit::Cover, (3000, 4000), (Some(200), Some(100)), false, (3000, 1500), (200, 100)),
            (Fit::Cover, (100, 50), (Some(200), Some(200)), false, (50, 50), (50, 50)),
            (Fit::Cover, (100, 50), (Some(200), Some(200)), true, (50, 50), (200, 200)),
            (Fit::Exact, (4000, 3000), (Some(200), Some(300)), false, (4000, 3000), (200, 300)),
            (Fit::Exact, (100, 500), (Some(200), Some(300)), false, (100, 500), (100, 300)),
            (Fit::Exact, (100, 500), (Some(200), Some(300)), true, (100, 500), (200, 300)),
        ];
        for (fit, picture, wanted, upscale, part, size) in cases {
            let case = format!("{fit:?} {picture:?} {wanted:?} {upscale}");
            assert_eq!(plan(fit, picture, wanted, upscale), Some(Plan { part, size }), "{case}");
        }
    }

    #[test]
    fn a_size_without_the_sides_that_its_fit_needs_is_no_plan() {
        assert_eq!(plan(Fit::Contain, (9, 9), (None, None), false), None);
        for fit in [Fit::Cover, Fit::Exact] {
            assert_eq!(plan(fit, (9, 9), (Some(3), None), false), None);
        }
    }

    proptest! {
        #[test]
        fn it_stays_within_what_is_asked_and_what_is_there(
            picture in (1..70_000_u32, 1..70_000_u32),
            wanted in (1..10_000_u32, 1..10_000_u32),
            upscale: bool,
        ) {
            for fit in [Fit::Contain, Fit::Cover, Fit::Exact] {
                let (width, height) = wanted;
                let plan = plan(fit, picture, (Some(width), Some(height)), upscale).unwrap();
                prop_assert!(plan.size.0 >= 1 && plan.size.1 >= 1);
                prop_assert!(plan.size.0 <= width && plan.size.1 <= height, "{plan:?}");
                prop_assert!(plan.part.0 <= picture.0 && plan.part.1 <= picture.1, "{plan:?}");
                if !upscale {
                    prop_assert!(plan.size.0 <= plan.part.0 && plan.size.1 <= plan.part.1, "{plan:?}");
                }
            }
        }
    }
}

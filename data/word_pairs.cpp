#include "data/word_pairs.h"

#include <array>
#include <string_view>

#include "base/error.h"

namespace sinklora {
namespace {

constexpr std::array<std::string_view, kAdjectives> kAdjectiveWords = {
    "amber",   "ancient", "bitter", "blue",   "bold",   "brass",   "brave",  "bright", "broken", "brown",
    "calm",    "clever",  "cold",   "copper", "coral",  "crimson", "curved", "damp",   "dark",   "deep",
    "dusty",   "eager",   "early",  "empty",  "faded",  "fair",    "fierce", "final",  "flat",   "foggy",
    "frozen",  "gentle",  "giant",  "golden", "grand",  "grey",    "green",  "happy",  "heavy",  "hidden",
    "hollow",  "humble",  "iron",   "ivory",  "jolly",  "keen",    "late",   "lazy",   "little", "lonely",
    "loud",    "lucky",   "marble", "mellow", "mighty", "misty",   "narrow", "noble",  "old",    "pale",
    "patient", "plain",   "polite", "proud",  "purple", "quick",   "quiet",  "rapid",  "red",    "rusty",
    "silent",  "silver",  "simple", "slow",   "solid",  "steep",   "tall",   "violet", "warm",   "yellow"};
constexpr std::array<std::string_view, kNouns> kNounWords = {
    "anchor",   "apple",   "arrow",  "basket", "beacon", "bell",   "boat",     "bottle", "bridge",  "bucket",
    "button",   "cabin",   "candle", "carpet", "castle", "chair",  "clock",    "cloud",  "coat",    "comet",
    "crown",    "cup",     "desk",   "door",   "dragon", "drum",   "eagle",    "engine", "falcon",  "farm",
    "feather",  "fence",   "field",  "flag",   "flute",  "forest", "fountain", "garden", "gate",    "glove",
    "hammer",   "harbor",  "hill",   "horse",  "island", "jacket", "kettle",   "key",    "kite",    "ladder",
    "lamp",     "lantern", "letter", "lion",   "market", "meadow", "mirror",   "needle", "orchard", "owl",
    "painting", "piano",   "pillow", "planet", "pond",   "rabbit", "ring",     "river",  "rope",    "saddle",
    "shell",    "ship",    "stone",  "sword",  "table",  "temple", "tower",    "train",  "wagon",   "window"};

}  // namespace

std::string word_pair(int64_t index, char between) {
  if (index < 0 || index >= kWordPairs) fail_internal("word pair {} of {}", index, kWordPairs);
  return fmt::format("{}{}{}", kAdjectiveWords[static_cast<size_t>(index / kNouns)], between,
                     kNounWords[static_cast<size_t>(index % kNouns)]);
}

}  // namespace sinklora

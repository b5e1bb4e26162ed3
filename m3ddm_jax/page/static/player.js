// Play source and result together: the result leads, and the source is set to its time.
const parts = () => ["source", "result"].map((name) => element.querySelector(`video.${name}`));
const find = (name) => element.querySelector(`.${name}`);
const FARTHEST = 0.06; // seconds that the two may be apart

const clock = (seconds) => {
  const whole = Math.floor(seconds || 0);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
};

const follow = (always) => {
  const [source, result] = parts();
  const apart = Math.abs(source.currentTime - result.currentTime);
  if (always || apart > FARTHEST) source.currentTime = result.currentTime;
};

const show = () => {
  const [, result] = parts();
  if (!result) return;
  find("play").textContent = result.paused ? "Play" : "Pause";
  find("seek").value = result.duration ? result.currentTime / result.duration : 0;
  find("time").textContent = `${clock(result.currentTime)} / ${clock(result.duration)}`;
};

const toggle = () => {
  const [source, result] = parts();
  if (result.paused) {
    follow(true);
    source.play();
    result.play();
  } else {
    result.pause();
    source.pause();
    follow(true);
  }
};

const tick = () => {
  const [, result] = parts();
  if (result && !result.paused) follow(false);
  show();
  requestAnimationFrame(tick);
};

element.addEventListener("click", (event) => {
  if (event.target.closest(".play, video")) toggle();
});
element.addEventListener("input", (event) => {
  const [, result] = parts();
  if (!event.target.closest(".seek") || !result.duration) return;
  result.currentTime = event.target.value * result.duration;
  follow(true);
});
tick();

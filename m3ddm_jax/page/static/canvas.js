// Drag the source on the picture of the canvas: the frame follows, and where it is dropped is the new anchor.
let drag = null;

const place = (event) => {
  const { svg, image, start, from, room } = drag;
  const [view, shown] = [svg.viewBox.baseVal, svg.getBoundingClientRect()];
  const scale = Math.max(view.width / shown.width, view.height / shown.height);
  const moved = [(event.clientX - start[0]) * scale, (event.clientY - start[1]) * scale];
  const at = from.map((value, axis) => Math.min(Math.max(value + moved[axis], 0), room[axis]));
  image.setAttribute("x", at[0]);
  image.setAttribute("y", at[1]);
  drag.anchor = at.map((value, axis) => (room[axis] > 0 ? value / room[axis] : null));
};

element.addEventListener("pointerdown", (event) => {
  const image = event.target.closest(".source");
  if (!image) return;
  event.preventDefault();
  const svg = image.ownerSVGElement;
  drag = {
    svg,
    image,
    start: [event.clientX, event.clientY],
    from: ["x", "y"].map((name) => Number(image.getAttribute(name))),
    room: [Number(svg.dataset.roomX), Number(svg.dataset.roomY)],
    anchor: null,
  };
  element.setPointerCapture(event.pointerId);
});
element.addEventListener("pointermove", (event) => drag && place(event));
element.addEventListener("pointerup", () => {
  if (drag && drag.anchor) trigger("select", { anchor: drag.anchor });
  drag = null;
});
element.addEventListener("pointercancel", () => (drag = null));

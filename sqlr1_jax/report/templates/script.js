// A chart shows the values of the step under the pointer, and the last values without a pointer.
for (const figure of document.querySelectorAll("figure.chart")) {
  const { steps, x, values } = JSON.parse(figure.dataset.hover);
  const plot = figure.querySelector(".plot");
  const cursor = plot.querySelector(".cursor");
  const step = figure.querySelector(".step");
  const outputs = [...figure.querySelectorAll("output")];
  const last = outputs.map((output) => output.textContent);

  const showLast = () => {
    cursor.hidden = true;
    step.textContent = "";
    outputs.forEach((output, i) => (output.textContent = last[i]));
  };
  const showNearest = (event) => {
    const box = plot.getBoundingClientRect();
    const position = (100 * (event.clientX - box.left)) / box.width;
    let nearest = 0;
    x.forEach((stepPosition, i) => {
      if (Math.abs(stepPosition - position) < Math.abs(x[nearest] - position)) nearest = i;
    });
    cursor.hidden = false;
    cursor.style.left = `${x[nearest]}%`;
    step.textContent = `step ${steps[nearest].toLocaleString("en")}`;
    for (const output of outputs) output.textContent = values[output.dataset.series][nearest];
  };
  plot.addEventListener("pointermove", showNearest);
  plot.addEventListener("pointerdown", showNearest);
  plot.addEventListener("pointerleave", showLast);
}
